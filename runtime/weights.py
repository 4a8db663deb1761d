"""Checkpoints in and out. What is written is safetensors; names are spec paths."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from multiway.runtime.model import Model
from multiway.runtime.rename import RenameTable
from multiway.specs.errors import MultiwayError, nearest

FORMAT = "multiway"
_SHOWN = 400  # names listed for one kind of mismatch; more than any real difference


def save_weights(model: Model, path: str | Path) -> None:
    """Writes all parameters under their spec paths. Nothing is left behind if it fails."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": FORMAT, "spec": model.spec.name, "head": model.spec.head_name}
    _write(tensors, Path(path), metadata)


def _write(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiwayError.one("unwritable", f"cannot write: {reason}", place=str(path)) from None
    os.close(handle)
    try:
        save_file(dict(tensors), name, metadata=metadata)
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load_weights(model: Model, path: str | Path, *, table: RenameTable | None = None) -> None:
    """Reads a checkpoint into a model. Raises MultiwayError, changing nothing, if it does not fit.

    Without a table the names must be spec paths. Foreign files go through the table of the family.
    """
    tensors = read_tensors(Path(path), unwrap=table.unwrap if table else ())
    own = dict(model.named_parameters())
    if table is None:
        found = dict(tensors)
        _check_fit(own, found, Path(path), model)
    else:
        found = _renamed(own, tensors, table, Path(path), model)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
    model.random = False


def _renamed(
    own: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    table: RenameTable,
    path: Path,
    model: Model,
) -> dict[str, torch.Tensor]:
    """The foreign tensors under our names."""
    pairs, unknown = table.pairs(own)
    fit = _Fit(path, model)
    fit.unknown += unknown
    found: dict[str, torch.Tensor] = {}
    for pair in pairs:
        theirs = tensors.get(pair.theirs)
        if theirs is None:
            fit.missing.append(f"{pair.theirs} (for {', '.join(pair.ours)})")
            continue
        rows = [own[name].shape[0] if own[name].dim() else 1 for name in pair.ours]
        wanted = own[pair.ours[0]].shape
        if len(pair.ours) > 1:
            wanted = torch.Size([sum(rows), *wanted[1:]])
        if theirs.shape != wanted:
            fit.misshaped.append(f"{pair.theirs} is {list(theirs.shape)}, needs {list(wanted)}")
            continue
        parts = [theirs] if len(rows) == 1 else torch.split(theirs, rows)
        found.update(zip(pair.ours, parts, strict=True))
    read = {pair.theirs for pair in pairs}
    fit.extra += [name for name in tensors if name not in read and not table.ignores(name)]
    fit.raise_if_any()
    return found


class _Fit:
    """Everything in a checkpoint that does not fit a model."""

    def __init__(self, path: Path, model: Model) -> None:
        self.path, self.model = path, model
        self.missing: list[str] = []
        self.misshaped: list[str] = []
        self.extra: list[str] = []
        self.unknown: list[str] = []

    def raise_if_any(self) -> None:
        groups = {
            "missing": self.missing,
            "wrong shape": self.misshaped,
            "not of this model": self.extra,
            "no foreign name": self.unknown,
        }
        if not any(groups.values()):
            return
        counts = ", ".join(f"{len(names)} {what}" for what, names in groups.items() if names)
        name = f"{self.model.spec.name}, head {self.model.spec.head_name}"
        notes = [
            (what, "\n    " + "\n    ".join(_listed(names)))
            for what, names in groups.items()
            if names
        ]
        raise MultiwayError.one(
            "weights-do-not-fit",
            f"these are not the weights of {name}: {counts}; nothing was loaded",
            place=str(self.path),
            notes=tuple(notes),
        )


def _listed(names: list[str]) -> list[str]:
    more = [f"... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return names[:_SHOWN] + more


def _check_fit(
    own: Mapping[str, torch.nn.Parameter],
    found: Mapping[str, torch.Tensor],
    path: Path,
    model: Model,
) -> None:
    fit = _Fit(path, model)
    for name, parameter in own.items():
        if name not in found:
            fit.missing.append(name)
        elif found[name].shape != parameter.shape:
            shapes = f"is {list(found[name].shape)}, needs {list(parameter.shape)}"
            fit.misshaped.append(f"{name} {shapes}")
    for name in found:
        if name not in own:
            like = nearest(name, own)
            fit.extra.append(name + (f" (like {like})" if like and like not in found else ""))
    fit.raise_if_any()


def read_tensors(path: Path, *, unwrap: tuple[str, ...] = ()) -> Mapping[str, torch.Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint, by name. Raises MultiwayError.

    unwrap: keys under which a torch checkpoint may keep its state dict. No pickled code runs.
    """
    if path.is_dir():
        raise MultiwayError.one("not-a-file", "this is a directory", place=str(path))
    if not path.is_file():
        raise MultiwayError.one("no-such-file", "there is no such file", place=str(path))
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    try:
        return reader(path, unwrap)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiwayError.one(
            "unreadable", f"cannot be read: {reason}", place=str(path)
        ) from None


def _read_safetensors(path: Path, unwrap: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise MultiwayError.one(
            "broken-weights", f"not a whole safetensors file: {error}", place=str(path)
        ) from None


def _read_torch(path: Path, unwrap: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
    refuse = _refusal(path)
    if not _is_zip(path) and not _is_pickle(path):
        raise refuse("not a torch checkpoint")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:
        raise refuse("holds more than tensors, and code in a checkpoint is never run") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError):
        raise refuse("not a whole torch checkpoint") from None
    for key in unwrap:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise refuse("holds no state dict")
    strange = [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise refuse(f"not a state dict: {strange[0]!r} is no tensor")
    return {str(name): value for name, value in loaded.items()}


def _refusal(path: Path) -> Callable[[str], MultiwayError]:
    return lambda message: MultiwayError.one("broken-weights", message, place=str(path))


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle does (the format before torch 1.6)."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _is_zip(path: Path) -> bool:
    """Whether a torch checkpoint can be mapped instead of read (the format since torch 1.6)."""
    return zipfile.is_zipfile(path)
