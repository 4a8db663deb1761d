"""What one call of attention over depth asks for, what it keeps, and what its backward gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Maybes = Sequence[Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of a call. normed: number of norms; raw: the average itself is put out too."""

    groups: int
    eps: float
    norm: str
    norm_eps: float
    normed: int
    raw: bool


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """history: L of [..., D]; query: [D], in at least float32; gains, biases: one [D] for each norm
    or none at all. scales: for each source 1 / its root mean square, [tokens], in the type of the
    query; those that are `fresh` are written by forward.
    """

    history: Tensors
    query: Tensor
    gains: Tensors
    biases: Tensors
    scales: Tensors
    fresh: Sequence[bool]

    @property
    def tokens(self) -> int:
        return self.history[0].shape[:-1].numel()

    @property
    def width(self) -> int:
        return self.history[0].shape[-1]


@dataclass(frozen=True, kw_only=True)
class State:
    """What backward reads: average [..., D], scores [L, tokens, G], lse [tokens, G], the log of the
    sum of the scores' exponentials."""

    average: Tensor
    scores: Tensor
    lse: Tensor


@dataclass(frozen=True, kw_only=True)
class Debt:
    """What a router owes its sources, for `pull`.

    grad: [tokens, D], the gradient of the average. parts: [L, tokens, 2 G + 1], for each group how
    much of `grad`, then of the query, a source gets; last how much of itself is taken away.
    """

    history: Tensors
    query: Tensor
    grad: Tensor
    parts: Tensor
    groups: int


@dataclass(frozen=True, kw_only=True)
class Grads:
    """Gradients of query, gains and biases; those of sources are owed."""

    query: Tensor
    gains: Tensors
    biases: Tensors
    debt: Debt


def wide_type(x: Tensor) -> torch.dtype:
    """The type of x, or float32 if that is narrower."""
    return torch.promote_types(x.dtype, torch.float32)
