"""Weights in and out of models. Native files are safetensors whose names are spec paths."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from multiway.runtime.checkpoints.files import Checkpoint, open_checkpoint
from multiway.runtime.checkpoints.layout import held, held_shapes, laid, laid_shape, taken
from multiway.runtime.checkpoints.rename import Pair, RenameTable
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError, nearest

FORMAT = "multiway"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_SHOWN = 400  # names listed for one kind of mismatch; more than any real difference
_NUMBERS = {torch.Size([]), torch.Size([1])}  # shapes of one number: files have either
_HEAD_PARTS = ("heads.", "output.")  # parameters whose presence depends on the head


def save_weights(model: Model, path: str | Path) -> None:
    """Writes all parameters under their spec paths. Nothing is left behind if it fails."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": FORMAT, "spec": model.spec.name, "head": model.spec.head_name}
    _write(Path(path), lambda name: save_file(tensors, name, metadata=metadata))


def export_weights(model: Model, path: str | Path, table: RenameTable) -> None:
    """Writes the parameters under foreign names, as safetensors or, by the suffix, a torch file.

    The inverse of load_weights with the same table. Raises MultiwayError.
    """
    path, own = Path(path), model.state_dict()
    pairs, unknown = table.pairs(own)
    if unknown:
        raise MultiwayError.one(
            "no-foreign-name",
            f"{len(unknown)} parameters of {model.spec.name} have no name in {table.doc}",
            place=str(path),
            notes=(("first", ", ".join(unknown[:5])),),
        )
    tensors = {pair.theirs: laid(pair, held(pair, own)).contiguous() for pair in pairs}
    if path.suffix in TORCH_SUFFIXES:
        wrapped = {table.unwrap[0]: tensors} if table.unwrap else tensors
        _write(path, lambda name: torch.save(wrapped, name))
    else:
        write_tensors(path, tensors)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors as safetensors, as a whole or not at all. Raises MultiwayError."""
    _write(path, lambda name: save_file(dict(tensors), name, metadata={"format": "pt"}))


def _write(path: Path, write: Callable[[str], None]) -> None:
    """Writes a file beside its place and moves it there when it is whole."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(name)
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner may read
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MultiwayError.one("unwritable", f"cannot write: {reason}", place=str(path)) from None


@dataclass(kw_only=True)
class Loaded:
    """What loading did beyond copying tensors."""

    resized: list[str] = field(default_factory=list)  # position tables of another resolution
    fresh: list[str] = field(default_factory=list)  # parameters that kept their initial values


def load_weights(
    model: Model,
    path: str | Path,
    *,
    table: RenameTable | None = None,
    fresh_head: bool = False,
) -> Loaded:
    """Reads a checkpoint into a model. Raises MultiwayError, changing nothing, if it does not fit.

    table: the names of the family's released files; without one, names must be spec paths.
    fresh_head: what belongs to the head keeps its initial values, and another head's tensors in the
        file are left unread.
    Position tables of images are resized where the resolution differs. Tensors are read one at a
    time, so that little more than the model itself is in memory.
    """
    checkpoint = open_checkpoint(Path(path), unwrap=table.unwrap if table else ())
    plan = _Plan(model, checkpoint, Path(path), fresh_head)
    plan.make(table)
    with torch.no_grad():
        for pair in plan.pairs:
            parts = taken(pair, checkpoint[pair.theirs], held_shapes(pair, plan.own))
            targets = held(pair, plan.own)
            for name, target, part in zip(pair.ours, targets, parts, strict=True):
                if name in plan.loaded.resized:
                    part = resize_positions(part, target.shape[0], keep=plan.kept_rows(name))
                target.copy_(part.reshape(target.shape))  # a number may have an axis or none
    model.random = False
    return plan.loaded


class _Plan:
    """Which tensor goes where, and everything in a checkpoint that does not fit."""

    def __init__(self, model: Model, checkpoint: Checkpoint, path: Path, fresh_head: bool) -> None:
        self.model, self.checkpoint, self.path = model, checkpoint, path
        self.fresh_head = fresh_head
        self.own = model.state_dict(keep_vars=True)  # spec paths, whatever stands around blocks
        self.pairs: list[Pair] = []
        self.loaded = Loaded()
        self.missing: list[str] = []
        self.misshaped: list[str] = []
        self.extra: list[str] = []
        self.unknown: list[str] = []

    def make(self, table: RenameTable | None) -> None:
        """Pairs every parameter with its tensor. Raises MultiwayError listing all that fails."""
        names = list(self.own)
        if self.fresh_head:
            self.loaded.fresh = [name for name in names if name.startswith("heads.")]
            names = [name for name in names if not name.startswith("heads.")]
        if table is None:
            pairs = [Pair((name,), name) for name in names]
        else:
            pairs, self.unknown = table.pairs(names)
        for pair in pairs:
            self.add(pair)
        read = {pair.theirs for pair in pairs}
        for name in self.checkpoint:
            if name not in read and not self.may_be_left(name, table):
                self.extra.append(self.hint(name))
        self.raise_if_any()

    def add(self, pair: Pair) -> None:
        if pair.theirs not in self.checkpoint:
            if self.fresh_head and pair.ours[0].startswith(_HEAD_PARTS):
                self.loaded.fresh += pair.ours
            else:
                ours = "" if pair.ours == (pair.theirs,) else f" (for {', '.join(pair.ours)})"
                self.missing.append(pair.theirs + ours)
            return
        found, wanted = self.checkpoint.shape(pair.theirs), self.wanted(pair)
        if found != wanted and {found, wanted} != _NUMBERS:
            if not pair.plain or not self.resizable(pair.ours[0], found):
                self.misshaped.append(f"{pair.theirs} is {list(found)}, needs {list(wanted)}")
                return
            self.loaded.resized.append(pair.ours[0])
        self.pairs.append(pair)

    def wanted(self, pair: Pair) -> torch.Size:
        shapes = held_shapes(pair, self.own)
        return shapes[0] if pair.plain else laid_shape(pair, shapes)

    def may_be_left(self, name: str, table: RenameTable | None) -> bool:
        if table is not None and table.ignores(name):
            return True
        if not self.fresh_head:
            return False
        if table is None:
            return name.startswith(_HEAD_PARTS)
        return table.is_of(name, _HEAD_PARTS)

    def hint(self, name: str) -> str:
        like = nearest(name, self.own)
        return name + (f" (like {like})" if like and like not in self.checkpoint else "")

    def kept_rows(self, name: str) -> int:
        """Rows of an image's position table that are no patches: the offset and the cls token."""
        embed = self.model.spec.embed[name.split(".")[1]]
        assert embed.position is not None
        return embed.position.offset + (1 if embed.cls else 0)

    def resizable(self, name: str, found: torch.Size) -> bool:
        """Whether this is the position table of a square image of another resolution."""
        parts = name.split(".")
        if parts[0] != "embed" or parts[2:] != ["position", "weight"]:
            return False
        embed = self.model.spec.embed[parts[1]]
        if embed.patch is None or len(found) != 2 or found[1] != self.own[name].shape[1]:
            return False
        return _side(found[0] - self.kept_rows(name)) > 0

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


def _side(patches: int) -> int:
    """The side of a square of so many patches, 0 where there is none."""
    side = round(max(patches, 0) ** 0.5)
    return side if side * side == patches else 0


def resize_positions(table: torch.Tensor, rows: int, *, keep: int) -> torch.Tensor:
    """A position table [R, D] for another number of square patches: [rows, D].

    The first `keep` rows stay, the rest is resized as an image (bicubic, corners not aligned), as
    BEiT-3's own loader does.
    """
    grid = table[keep:].float()
    old, new = _side(grid.shape[0]), _side(rows - keep)
    image = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        image, size=(new, new), mode="bicubic", align_corners=False
    )
    patches = resized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)
    return torch.cat([table[:keep], patches])


def read_tensors(path: Path, *, unwrap: tuple[str, ...] = ()) -> Mapping[str, torch.Tensor]:
    """The tensors of a checkpoint by name, read when asked for. Raises MultiwayError."""
    return open_checkpoint(path, unwrap=unwrap)
