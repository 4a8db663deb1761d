"""What one call of a site of lanes asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

WEIGHTS = ("", "given", "sum", "tanh", "gates")  # numbered as in lanes.c


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of `fused_lanes`; see compiler/fusions/fused_lanes.py."""

    ends: str
    weights: str
    eps: float
    factors: Sequence[float]
    floors: Sequence[float]
    balance: Mapping[str, Any]
    norm: str
    norm_eps: float
    kept: int
    goes_on: int
    reads: int
    normed: int
    raw: int

    @property
    def generates(self) -> bool:
        """Whether weights are made from the lanes."""
        return self.weights in ("tanh", "gates")


Many = Sequence[Tensor] | None
SINGLE = ("lanes", "y", "mix", "write", "read", "gain", "bias")
LISTS = ("matrices", "shifts", "scales", "statics", "biases", "gains", "offsets")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The tensors of `fused_lanes`.

    lanes: [B, T, N, D]; y: [B, T, D] or pieces [B, T, N*D]; mix: [*, N, N], write: [*, N, 1],
    read: [*, N, R], * empty or B, T; gain, bias: [D] or [N*D], of the norm that weights are made
    from; matrices: [F, D] or [F, N*D] for read, mix and write; shifts: [F] each; scales: [] each;
    statics: [N, F] each (tanh); biases: [F] each (gates); gains, offsets: [R*D] for each norm.
    """

    lanes: Tensor
    y: Tensor | None = None
    mix: Tensor | None = None
    write: Tensor | None = None
    read: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    matrices: Sequence[Tensor] = ()
    shifts: Sequence[Tensor] = ()
    scales: Sequence[Tensor] = ()
    statics: Sequence[Tensor] = ()
    biases: Sequence[Tensor] = ()
    gains: Sequence[Tensor] = ()
    offsets: Sequence[Tensor] = ()

    @property
    def tensors(self) -> list[Tensor | None]:
        """All of them, one after the other."""
        found: list[Tensor | None] = []
        for each in fields(self):
            value = getattr(self, each.name)
            found += value if isinstance(value, (list, tuple)) else [value]
        return found

    @property
    def counts(self) -> tuple[int, ...]:
        """The lengths of the lists; with `tensors`, what `regrouped` needs."""
        return tuple(len(getattr(self, name)) for name in LISTS)

    @property
    def tokens(self) -> int:
        return self.lanes.shape[:-2].numel()


def regrouped(tensors: Sequence[Any], counts: Sequence[int]) -> dict[str, Any]:
    """The inverse of `Inputs.tensors`: by name, as single values and lists."""
    found: dict[str, Any] = dict(zip(SINGLE, tensors, strict=False))
    at = len(SINGLE)
    for name, count in zip(LISTS, counts, strict=True):
        found[name] = list(tensors[at : at + count])
        at += count
    return found


def columns(plan: Plan, lanes: int) -> list[int]:
    """How many columns of one generator's product are for read, mix and write."""
    if plan.weights == "tanh":
        return [plan.reads, lanes, 1] if plan.goes_on else [plan.reads]
    return [lanes, lanes * lanes, lanes] if plan.goes_on else [lanes]


def wide(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
