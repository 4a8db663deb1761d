"""Files that hold tensors, read one tensor at a time.

A checkpoint is a .safetensors file, a torch file (.pth, .pt, .bin), an index of shards of either
kind, or a folder with one of these. Nothing of it is in memory before it is asked for: safetensors
are read by name, torch files are mapped. No pickled code runs.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from multiway.specs.errors import MultiwayError

_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_MAX_INDEX_BYTES = 1 << 26


class Checkpoint(Mapping[str, torch.Tensor]):
    """Tensors by name. `shape` says a tensor's shape without reading it."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], read: Callable[[str], torch.Tensor]
    ) -> None:
        self._shapes, self._read = shapes, read

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> torch.Size:
        return self._shapes[name]


def open_checkpoint(path: Path, *, unwrap: tuple[str, ...] = ()) -> Checkpoint:
    """Opens a checkpoint and looks at every name and shape in it. Raises MultiwayError.

    unwrap: keys under which a torch file may keep its state dict.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise MultiwayError.one("no-such-file", "there is no such file", place=str(path))
    try:
        if path.name.endswith(".index.json"):
            return _open_index(path, unwrap)
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        return _open_torch(path, unwrap)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiwayError.one(
            "unreadable", f"cannot be read: {reason}", place=str(path)
        ) from None


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise MultiwayError.one(
        "no-such-file",
        "this folder holds no checkpoint",
        place=str(folder),
        expected=" or ".join(_IN_FOLDER),
    )


def broken(path: Path, message: str) -> MultiwayError:
    """What to raise for a file that is not what its name says."""
    return MultiwayError.one("broken-weights", message, place=str(path))


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
        shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise broken(path, f"not a whole safetensors file: {error}") from None
    return Checkpoint(shapes, file.get_tensor)


def _open_torch(path: Path, unwrap: tuple[str, ...]) -> Checkpoint:
    if not zipfile.is_zipfile(path) and not _is_pickle(path):
        raise broken(path, "not a torch checkpoint")
    try:
        # Only the format since torch 1.6, a zip file, can be mapped.
        mapped = zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        message = "holds more than tensors, and code in a checkpoint is never run"
        raise broken(path, message) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError):
        raise broken(path, "not a whole torch checkpoint") from None
    tensors = _state_dict(path, loaded, unwrap)
    return Checkpoint({name: value.shape for name, value in tensors.items()}, tensors.__getitem__)


def _state_dict(path: Path, loaded: Any, unwrap: tuple[str, ...]) -> dict[str, torch.Tensor]:
    for key in unwrap:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise broken(path, "holds no state dict")
    strange = [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise broken(path, f"not a state dict: {strange[0]!r} is no tensor")
    return {str(name): value for name, value in loaded.items()}


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle does (the format before torch 1.6)."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _open_index(path: Path, unwrap: tuple[str, ...]) -> Checkpoint:
    """The shards that an index names; all are opened, so that a broken one is found at once."""
    where = _weight_map(path)
    shards = {name: _open_shard(path, name, unwrap) for name in dict.fromkeys(where.values())}
    lost = [name for name, shard in where.items() if name not in shards[shard]]
    if lost:
        raise broken(path, f"{lost[0]!r} is not in {where[lost[0]]}")
    shapes = {name: shards[shard].shape(name) for name, shard in where.items()}
    return Checkpoint(shapes, lambda name: shards[where[name]][name])


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise broken(path, "too large for an index")
    try:
        found = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken(path, "not an index of a checkpoint") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise broken(path, "its weight_map does not map names to files")
    return found


def _open_shard(index: Path, name: str, unwrap: tuple[str, ...]) -> Checkpoint:
    if Path(name).name != name or name.endswith(".index.json"):
        raise broken(index, f"{name!r} is not a file beside it")
    return open_checkpoint(index.parent / name, unwrap=unwrap)
