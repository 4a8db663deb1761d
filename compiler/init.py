"""How a parameter starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Init:
    """A kind and its numbers; those that a kind does not use are 0. See language.parts.Initial."""

    kind: str
    std: float = 0.0
    cut: float = 0.0
    bound: float = 0.0
    value: float = 0.0


NORMAL = Init(kind="normal", std=0.02)
ZEROS = Init(kind="zeros")
ONES = Init(kind="ones")
NEWEST = Init(kind="newest")
IDENTITY = Init(kind="identity")


def one_hot(row: int) -> Init:
    """1 in one row, 0 elsewhere."""
    return Init(kind="one_hot", value=row)


def tiled(value: float) -> Init:
    """`value` where the column, modulo the number of rows, is the row; 0 elsewhere."""
    return Init(kind="tiled", value=value)


def diagonal(value: float) -> Init:
    """`value` on the diagonal of a square matrix that is laid out as one row; 0 elsewhere."""
    return Init(kind="diagonal", value=value) if value else ZEROS


def scaled(start: Init, factor: float) -> Init:
    """The same distribution, times a factor. Raises KeyError for a kind that has no such form."""
    numbers = {name: getattr(start, name) * factor for name in ("std", "cut", "bound", "value")}
    match start.kind:
        case "zeros":
            return start
        case "ones":
            return Init(kind="constant", value=factor)
        case "normal" | "truncated_normal" | "uniform" | "constant" | "tiled" | "diagonal":
            return Init(kind=start.kind, **numbers)
    raise KeyError(start.kind)
