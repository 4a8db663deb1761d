"""How a parameter starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Init:
    """A kind and its numbers; those that a kind does not use are 0. See specs.language.Initial."""

    kind: str
    std: float = 0.0
    cut: float = 0.0
    bound: float = 0.0
    value: float = 0.0


NORMAL = Init(kind="normal", std=0.02)
ZEROS = Init(kind="zeros")
ONES = Init(kind="ones")
NEWEST = Init(kind="newest")
