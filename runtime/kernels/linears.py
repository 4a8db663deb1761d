"""Linears of several inputs: all their products at once, each on one thread (kernels/blas).

One after another, every product waits for its last thread, and every linear is a step of autograd.
Elsewhere than in float32 and float64 on the CPU they are computed so. Measured there (torch 2.13,
MKL, 2 cores, float32), the time of a step of training over that one after another: 24 x 256 with
two modalities 0.96, MUDD at 24 x 256 0.99 and at 12 x 768 0.99.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from multiway.runtime.kernels import blas
from multiway.runtime.kernels import linear_sum as one_sum
from multiway.runtime.kernels.blas import Kind
from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.kernels.native.calls import addresses
from multiway.runtime.kernels.packed_linear import packed_linear

LARGE = 1 << 23  # multiplications of all: below, a function of our own costs more than it saves


def linears(
    xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """linear(x_i, weight_i, bias_i) for each i.

    xs: [B, T_i, D_i], of which some may be the same tensor; weights: [F_i, D_i]; biases: [F_i]
    each, or none -> [B, T_i, F_i] each. A second backward pass through it raises RuntimeError.
    """
    biases = biases or ()
    if torch.compiler.is_compiling():  # sizes may be unknown
        given = enumerate(zip(xs, weights, strict=True))
        return tuple(F.linear(x, weight, *biases[i : i + 1]) for i, (x, weight) in given)
    inputs, numbers = _distinct(xs)
    if not _at_once(weights, *inputs, *biases):
        return _apart(inputs, numbers, weights, biases)
    return _called(_Plan(numbers=numbers, biases=bool(biases)), (*inputs, *weights, *biases))


def linear_sums(
    residuals: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """residual_i + linear(x_i, weight_i, bias_i) for each i.

    residuals: [B, T_i, F_i]; xs: [B, T_i, D_i]; weights: [F_i, D_i]; biases: [F_i] each, or none
    -> [B, T_i, F_i] each. A second backward pass through it raises RuntimeError.
    """
    biases = biases or ()
    inputs, numbers = _distinct(xs)
    if not _at_once(weights, *inputs, *biases, *residuals):
        given = enumerate(zip(residuals, xs, weights, strict=True))
        return tuple(one_sum.linear_sum(r, [x], [w], biases[i : i + 1]) for i, (r, x, w) in given)
    plan = _Plan(numbers=numbers, biases=bool(biases))
    return _called(plan, (*inputs, *weights, *biases, *residuals))


def _distinct(xs: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Every tensor that is there, once, and the number of each x among them."""
    inputs = {id(x): x for x in xs}
    places = {number: i for i, number in enumerate(inputs)}
    return list(inputs.values()), [places[id(x)] for x in xs]


def _at_once(weights: Sequence[Tensor], *others: Tensor) -> bool:
    x = others[0]
    work = x.numel() * sum(weight.shape[0] for weight in weights)
    return work >= LARGE and not autocasts(x) and blas.takes(*weights, *others)


def _apart(
    inputs: Sequence[Tensor],
    numbers: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Those of one input together, one input after another."""
    found: list[Tensor | None] = [None] * len(weights)
    for number, x in enumerate(inputs):
        mine = [i for i, each in enumerate(numbers) if each == number]
        ys = packed_linear(x, [weights[i] for i in mine], [biases[i] for i in mine if biases])
        for i, y in zip(mine, ys, strict=True):
            found[i] = y
    return tuple(y for y in found if y is not None)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the tensors of a call are: inputs, weights, biases if any, residuals if any."""

    numbers: Sequence[int]  # the input of each linear
    biases: bool

    def parted(self, given: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Inputs, weights, biases, residuals."""
        first, count = max(self.numbers) + 1, len(self.numbers)
        second = first + count
        third = second + count * self.biases
        return given[:first], given[first:second], given[second:third], given[third:]


def _called(plan: _Plan, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        found: tuple[Tensor, ...] = _Linears.apply(plan, *given)  # type: ignore[no-untyped-call]
        return found
    return _forward(plan, given)


class _Linears(torch.autograd.Function):
    """plan, inputs, weights, biases, residuals -> a result for each weight."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.save_for_backward(*given[: max(plan.numbers) + 1 + len(plan.numbers)])
        return _forward(plan, given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        xs, weights, _, _ = ctx.plan.parted([each.contiguous() for each in ctx.saved_tensors])
        need_x, need_weight, need_bias, need_residual = ctx.plan.parted(ctx.needs_input_grad[1:])
        rows = [grad.contiguous() for grad in grads]
        of_xs = _of_inputs(ctx.plan.numbers, xs, weights, rows, need_x)
        inputs = [xs[number] for number in ctx.plan.numbers]
        of_weights = _of_weights(inputs, weights, rows, need_weight)
        of_biases = [
            grad.flatten(0, -2).sum(0) if needed else None
            for grad, needed in zip(rows, need_bias, strict=False)
        ]
        of_residuals = [
            grad if needed else None for grad, needed in zip(grads, need_residual, strict=False)
        ]
        return None, *of_xs, *of_weights, *of_biases, *of_residuals


def _rows(x: Tensor) -> int:
    return x.shape[:-1].numel()


def _forward(plan: _Plan, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    xs, weights, biases, residuals = plan.parted([each.contiguous() for each in given])
    inputs = [xs[number] for number in plan.numbers]
    made = [x.new_empty(*x.shape[:-1], w.shape[0]) for x, w in zip(inputs, weights, strict=True)]
    blas.products(
        Kind.LINEAR,
        xs[0].dtype,
        rows=[_rows(x) for x in inputs],
        columns=[weight.shape[0] for weight in weights],
        depth=[weight.shape[1] for weight in weights],
        a=addresses(inputs),
        b=addresses(weights),
        c=addresses(made),
        first=addresses(residuals),
        bias=addresses(biases),
    )
    return tuple(made)


def _of_inputs(
    numbers: Sequence[int],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the inputs: for each the sum of the products of its linears."""
    found = [torch.empty_like(x) if each else None for x, each in zip(xs, needed, strict=True)]
    wanted = [i for i, each in enumerate(found) if each is not None]
    readers = [[j for j, number in enumerate(numbers) if number == i] for i in wanted]
    most = max(map(len, readers), default=0)
    # Every input has `most` products, some of which are over nothing.
    terms = [j for mine in readers for j in (*mine, *[-1] * (most - len(mine)))]
    blas.products(
        Kind.PLAIN,
        xs[0].dtype,
        rows=[_rows(xs[i]) for i in wanted],
        columns=[xs[i].shape[-1] for i in wanted],
        depth=[0 if j < 0 else weights[j].shape[0] for j in terms],
        a=[0 if j < 0 else grads[j].data_ptr() for j in terms],
        b=[0 if j < 0 else weights[j].data_ptr() for j in terms],
        c=addresses(found[i] for i in wanted),
    )
    return found


def _of_weights(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    found = [torch.empty_like(w) if each else None for w, each in zip(weights, needed, strict=True)]
    wanted = [i for i, each in enumerate(found) if each is not None]
    blas.products(
        Kind.OUTER,
        weights[0].dtype,
        rows=[weights[i].shape[0] for i in wanted],
        columns=[weights[i].shape[1] for i in wanted],
        depth=[_rows(inputs[i]) for i in wanted],
        a=[grads[i].data_ptr() for i in wanted],
        b=[inputs[i].data_ptr() for i in wanted],
        c=addresses(found[i] for i in wanted),
    )
    return found


def _refuses(xs: Sequence[Tensor], *_: Any, **__: Any) -> str | None:
    return None


def _refuses_sums(
    residuals: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
) -> str | None:
    reasons = map(one_sum.refuses, residuals, zip(xs), zip(weights))
    return next((reason for reason in reasons if reason is not None), None)


KERNELS = [
    Kernel(
        op="linears",
        run=linears,
        refuses=_refuses,
        doc="linears of several inputs at once, each product on one thread",
        portable=True,
    ),
    Kernel(
        op="linear_sums",
        run=linear_sums,
        refuses=_refuses_sums,
        doc="the same, added to residuals where they stand",
    ),
]
