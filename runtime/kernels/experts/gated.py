"""A gated feed-forward part of experts as one step of autograd: float32 on the CPU.

Beside the same in torch's operators the gate of an expert is a factor of the hidden in place of the
result, so that rows of results are not kept; the products for both halves add up where they stand;
act(gate) * x is one pass of C each way (gated.c), and made again for backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import native
from multiway.runtime.kernels.experts.dispatch import Dispatch
from multiway.runtime.kernels.experts.grouped import outer_by_size, products_by_size
from multiway.runtime.kernels.kernel import traced
from multiway.runtime.kernels.native.calls import alike
from multiway.runtime.kernels.rows import gated_compiled


def takes(kind: str, plan: Dispatch, *tensors: Tensor) -> bool:
    """Whether an expert's part of these, act(gate x) * (up x), is computed here."""
    if kind not in gated_compiled.KINDS or plan.by_token is None or traced():
        return False
    return (
        tensors[0].dtype == torch.float32
        and alike(*tensors)
        and native.library("gated") is not None
    )


def gated_ffn(
    x: Tensor, plan: Dispatch, up: Tensor, gate: Tensor, down: Tensor, *, kind: str
) -> Tensor:
    """The sum over experts of their weights times down(act(gate x) * (up x)).

    x: [N, D]; up, gate: [X, F, D]; down: [X, G, F] -> [N, G]. A second backward pass through it
    raises RuntimeError.
    """
    y: Tensor = _Gated.apply(plan, kind, x, plan.weights, up, gate, down)  # type: ignore[no-untyped-call]
    return y


class _Gated(torch.autograd.Function):
    """plan, kind, x, weights [R], up, gate, down -> [N, G]."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Dispatch,
        kind: str,
        x: Tensor,
        weights: Tensor,
        up: Tensor,
        gate: Tensor,
        down: Tensor,
    ) -> Tensor:
        assert plan.by_token is not None and isinstance(plan.groups, list)
        rows = x.index_select(0, plan.tokens)
        inner, gating = (products_by_size(rows, each.mT, plan.groups) for each in (up, gate))
        hidden = gated_compiled.forward(kind, inner, gating, weights)
        ctx.plan, ctx.kind = plan, kind
        ctx.save_for_backward(rows, weights, inner, gating, up, gate, down)
        return plan.by_token.sums(products_by_size(hidden, down.mT, plan.groups))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, inner, gating, up, gate, down = ctx.saved_tensors
        need_x, need_weights, *needs = ctx.needs_input_grad[2:]
        sizes = ctx.plan.groups
        given = grad.index_select(0, ctx.plan.tokens)
        of_hidden = products_by_size(given, down, sizes)
        found = gated_compiled.backward(
            ctx.kind, inner, gating, weights, of_hidden, again=needs[2], own=True
        )
        of_x = None
        if need_x:
            of_rows = products_by_size(found.x, up, sizes)
            products_by_size(found.gate, gate, sizes, add_to=of_rows)
            of_x = ctx.plan.by_token.sums(of_rows)
        of_matrices = [
            outer_by_size(of_products, factor, sizes) if factor is not None and needed else None
            for of_products, factor, needed in (
                (found.x, rows, needs[0]),
                (found.gate, rows, needs[1]),
                (given, found.y, needs[2]),
            )
        ]
        return None, None, of_x, found.weights if need_weights else None, *of_matrices
