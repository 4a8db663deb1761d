"""Which tokens go to which expert: rows of tokens in the order of the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from multiway.runtime.kernels.experts.grouped import grouped_by_size, grouped_linear


@dataclass(frozen=True, kw_only=True)
class ByToken:
    """The same rows, those of a token one behind the other."""

    order: Tensor  # [R] numbers of rows
    starts: Tensor  # [N] where those of each token start in it

    def sums(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """The rows [R, D] of every token, summed, each times its weight if given -> [N, D].

        On the CPU torch adds rows by index one at a time: 4096 of 256 numbers take 1.6 ms,
        the sum over bags 0.6, on one core.
        """
        if not rows.numel():
            return rows.new_zeros(self.starts.shape[0], rows.shape[-1])
        each = None if weights is None else weights.index_select(0, self.order)
        return embedding_bag(self.order, rows, self.starts, mode="sum", per_sample_weights=each)


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """R rows, those of an expert one behind the other."""

    tokens: Tensor  # [R] of each row
    experts: Tensor  # [R]
    groups: list[int] | Tensor  # rows of each expert; or int32 [X], where they end
    weights: Tensor  # [R] the gate of each
    by_token: ByToken | None = None  # where it is faster to sum so

    def linear(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Each row [R, D] times the transposed matrix of its expert, of [X, F, D] -> [R, F]."""
        if isinstance(self.groups, Tensor):
            found: Tensor = grouped_linear(rows, weight, self.groups)
            return found
        return grouped_by_size(rows, weight, self.groups)

    def rows(self, x: Tensor) -> Tensor:
        """The tokens [N, D] as rows [R, D]."""
        if self.by_token is None:
            return x.index_select(0, self.tokens)
        found: Tensor = _Rows.apply(x, self.tokens, self.by_token)  # type: ignore[no-untyped-call]
        return found

    def sums(self, rows: Tensor, count: int) -> Tensor:
        """The rows [R, D] of each of `count` tokens, summed by their weights -> [count, D]."""
        if self.by_token is None:
            weighed = rows * self.weights.unsqueeze(-1)
            return rows.new_zeros(count, rows.shape[-1]).index_add(0, self.tokens, weighed)
        found: Tensor = _Sums.apply(  # type: ignore[no-untyped-call]
            rows, self.weights, self.tokens, self.by_token
        )
        return found


class _Rows(torch.autograd.Function):
    """x [N, D] -> [R, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, by_token: ByToken) -> Tensor:
        ctx.by_token = by_token
        return x.index_select(0, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.by_token.sums(grad.contiguous()), None, None


class _Sums(torch.autograd.Function):
    """rows [R, D], weights [R] -> [N, D]."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weights: Tensor, tokens: Tensor, by_token: ByToken
    ) -> Tensor:
        ctx.save_for_backward(rows, weights, tokens)
        return by_token.sums(rows, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weights, tokens = ctx.saved_tensors
        given = grad.index_select(0, tokens)
        of_weights = torch.linalg.vecdot(given, rows) if ctx.needs_input_grad[1] else None
        of_rows = given.mul_(weights.unsqueeze(-1)) if ctx.needs_input_grad[0] else None
        return of_rows, of_weights, None, None


def dispatch(gates: Tensor, most: int) -> Dispatch:
    """The rows that gates [N, X] ask for; `most` of a token are not 0.

    On the CPU there is a row for every gate that is not 0, however many that are. Elsewhere, and
    for a compiler, no shape may depend on data: every token gives `most` rows, some of which may
    have the gate 0.
    """
    if is_static(gates):
        return _static(gates, most)
    used = gates.detach() != 0
    experts, tokens = used.t().nonzero(as_tuple=True)
    counts = used.sum(1)
    by_token = ByToken(order=tokens.argsort(stable=True), starts=counts.cumsum(0) - counts)
    weights = _at(gates, tokens, experts)
    return Dispatch(
        tokens=tokens,
        experts=experts,
        groups=used.sum(0).tolist(),
        weights=weights,
        by_token=by_token,
    )


def is_static(gates: Tensor) -> bool:
    """Whether shapes must not depend on data."""
    return not gates.is_cpu or torch.compiler.is_compiling()


def _static(gates: Tensor, most: int) -> Dispatch:
    chosen = gates.detach().abs().topk(most).indices.flatten()
    experts, order = chosen.sort(stable=True)
    tokens = order // most
    numbers = torch.arange(gates.shape[1], device=gates.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
    return Dispatch(
        tokens=tokens, experts=experts, groups=ends, weights=_at(gates, tokens, experts)
    )


def _at(gates: Tensor, tokens: Tensor, experts: Tensor) -> Tensor:
    return gates.flatten().index_select(0, tokens * gates.shape[1] + experts)
