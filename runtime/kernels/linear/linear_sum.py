"""A residual plus linears of other values: the products add to it where they stand in memory.

torch's linear with a bias first writes the bias to every row of the result and lets the product add
to it. Here the residual and all biases are what is written first, so additions cost no passes of
their own, and their biases' gradients are one sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.kernels.linear import prepacked

# Numbers in the sum: of fewer, a linear without a bias and an addition take 0.98 to 0.99 of a step,
# of as many 1.03 (24 x 256, 1024 and 2048 tokens).
FEWEST = 1 << 19


def linear_sum(
    residual: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
) -> Tensor:
    """residual + sum of linear(x_i, weight_i, bias_i).

    residual: [*, F]; xs: [*, D_i]; weights: [F, D_i]; biases: [F] each, or none -> [*, F].
    A second backward pass through it raises RuntimeError, unless the sum is small.
    """
    if _served(xs, weights):
        if (found := _by_copies(residual, xs, weights, biases)) is not None:
            return found
        if residual.dtype.itemsize < 4:
            return _one_by_one(residual, xs, weights, biases)
    if not torch.is_grad_enabled():  # a function of our own would cost more than it saves
        return _summed(residual, xs, weights, biases)
    if len(xs) == 1 and not biases and residual.numel() < FEWEST:
        return _one_by_one(residual, xs, weights, biases)
    y: Tensor = _LinearSum.apply(residual, len(xs), *xs, *weights, *biases)  # type: ignore[no-untyped-call]
    return y


def _served(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    return all(prepacked.serves(x, (w,)) for x, w in zip(xs, weights, strict=True))


def _by_copies(
    residual: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor | None:
    """The sum by the weights' copies, or None where there are none for this call."""
    y: Tensor | None = residual
    for x, weight, bias in _linears(xs, weights, biases):
        if y is not None:
            y = prepacked.added(y, x, weight, bias)
    return y


def _one_by_one(
    y: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    for x, weight, bias in _linears(xs, weights, biases):
        y = y + F.linear(x, weight, bias)
    return y


def _linears(
    xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    given: Sequence[Tensor | None] = biases or [None] * len(xs)
    return zip(xs, weights, given, strict=True)


def _summed(
    residual: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    rows = residual.reshape(-1, residual.shape[-1])
    flat = [x.reshape(-1, x.shape[-1]) for x in xs]
    if biases:
        y, rest = torch.add(rows, sum(biases[1:], biases[0])), 0
    else:
        y, rest = torch.addmm(rows, flat[0], weights[0].t()), 1
    for x, weight in zip(flat[rest:], weights[rest:], strict=True):
        y.addmm_(x, weight.t())
    return y.view(residual.shape)


class _LinearSum(torch.autograd.Function):
    """residual, number of linears, inputs, weights, biases -> [*, F]."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, count: int, *given: Tensor) -> Tensor:
        xs, weights, biases = given[:count], given[count : 2 * count], given[2 * count :]
        ctx.save_for_backward(*xs, *weights)
        return _summed(residual, xs, weights, biases)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint hands each tensor out once
        count = len(saved) // 2
        xs, weights = saved[:count], saved[count:]
        needs = ctx.needs_input_grad[2:]
        rows = grad.reshape(-1, grad.shape[-1])
        grads: list[Tensor | None] = [None] * len(needs)
        for i, (x, weight) in enumerate(zip(xs, weights, strict=True)):
            if needs[i]:
                grads[i] = (rows @ weight).view(x.shape)
            if needs[count + i]:
                grads[count + i] = rows.t() @ x.reshape(-1, x.shape[-1])
        grads[2 * count :] = _sums_of_rows(rows, needs[2 * count :])
        return grad, None, *grads


def _sums_of_rows(rows: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of biases [F] that were added to all rows, from those of the rows [N, F]; None
    where not needed. Each has its own: optimizers and clipping change them in place.
    """
    if not any(needed):
        return [None] * len(needed)
    total = rows.sum(0)
    first = needed.index(True)
    return [
        (total if i == first else total.clone()) if each else None for i, each in enumerate(needed)
    ]


def _takes(
    residual: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
) -> str | None:
    if autocasts(residual):
        return "autocast decides the types of products"
    dtype = residual.dtype
    if dtype.itemsize < 4 and not _served(xs, weights):
        return f"{dtype}: sums of several products are rounded between them"
    for x in (*xs, *weights):
        if x.dtype is not dtype:
            return "types differ"
    return None


KERNELS = [
    Kernel(
        op="linear_sum",
        run=linear_sum,
        takes=_takes,
        doc="products that add to the residual where they stand, without passes of their own",
    )
]
