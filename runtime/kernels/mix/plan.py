"""What one call of a mix asks for, and what its backward gives."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensors = Sequence[torch.Tensor]
Maybes = Sequence[torch.Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which ways are put out: normalised ones first, then those as they are."""

    norm: str
    eps: float
    normed: tuple[int, ...]
    raw: tuple[int, ...]

    @functools.cached_property
    def outputs(self) -> tuple[int, ...]:
        """The way of each output."""
        return (*self.normed, *self.raw)


@functools.lru_cache(maxsize=1024)
def plan_of(norm: str, eps: float, normed: tuple[int, ...], raw: tuple[int, ...]) -> Plan:
    """The plan with these attributes: one object for all calls that say the same."""
    return Plan(norm=norm, eps=eps, normed=normed, raw=raw)


# Made in every call: frozen, which sets each field through a function, would take longer.
@dataclass(kw_only=True, slots=True)
class Inputs:
    """history: L of [..., D]; weights: [..., C, L] or [C, L]; gains, biases: one [D] for each
    normalised way, or none at all.
    """

    history: Tensors
    weights: torch.Tensor
    gains: Tensors
    biases: Tensors

    @property
    def shared(self) -> bool:
        """Whether all tokens have the same weights."""
        return self.weights.ndim == 2

    @property
    def tokens(self) -> int:
        first = self.history[0]
        return first.shape[:-1].numel()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a backward is to compute. into: for each source the buffer [..., D] to add to, or None
    for a new one; it counts only where `sources` is true.
    """

    sources: Sequence[bool]
    weights: bool
    into: Maybes


@dataclass(frozen=True, kw_only=True)
class Grads:
    """Gradients; those of sources are the buffers of `Wanted.into`, added to, where given."""

    sources: list[torch.Tensor | None]
    weights: torch.Tensor | None
    gains: list[torch.Tensor]
    biases: list[torch.Tensor]


def no_grads(inputs: Inputs, wanted: Wanted) -> Grads:
    """Zeros, for a backward that no output has a gradient for."""
    pairs = zip(inputs.history, wanted.sources, wanted.into, strict=True)
    return Grads(
        sources=[(x.new_zeros(x.shape) if b is None else b) if w else None for x, w, b in pairs],
        weights=torch.zeros_like(inputs.weights) if wanted.weights else None,
        gains=[torch.zeros_like(x) for x in inputs.gains],
        biases=[torch.zeros_like(x) for x in inputs.biases],
    )
