"""Which tokens go to which expert: rows of tokens in the order of the experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """R rows, those of an expert one behind the other."""

    tokens: Tensor  # [R] of each row
    experts: Tensor  # [R]
    ends: Tensor  # [X] int32: where the rows of each expert end
    weights: Tensor  # [R] the gate of each

    def rows(self, x: Tensor) -> Tensor:
        """The tokens [N, D] as rows [R, D]."""
        return x.index_select(0, self.tokens)

    def sums(self, rows: Tensor, count: int) -> Tensor:
        """The rows [R, D] of each of `count` tokens, summed by their weights -> [count, D]."""
        weighed = rows * self.weights.unsqueeze(-1)
        return rows.new_zeros(count, rows.shape[-1]).index_add(0, self.tokens, weighed)


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
    ends = used.sum(0).cumsum(0).to(torch.int32)
    return Dispatch(tokens=tokens, experts=experts, ends=ends, weights=_at(gates, tokens, experts))


def is_static(gates: Tensor) -> bool:
    """Whether shapes must not depend on data."""
    return gates.device.type != "cpu" or torch.compiler.is_compiling()


def _static(gates: Tensor, most: int) -> Dispatch:
    chosen = gates.detach().abs().topk(most).indices.flatten()
    experts, order = chosen.sort(stable=True)
    tokens = order // most
    numbers = torch.arange(gates.shape[1], device=gates.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
    return Dispatch(tokens=tokens, experts=experts, ends=ends, weights=_at(gates, tokens, experts))


def _at(gates: Tensor, tokens: Tensor, experts: Tensor) -> Tensor:
    return gates.flatten().index_select(0, tokens * gates.shape[1] + experts)
