"""Linears of several inputs: all their products at once, each on one thread (kernels/blas).

One after another, every product waits for its last thread, and every linear is a step of autograd.
Elsewhere than in float32 and float64 on the CPU they are computed so. Measured there (torch 2.13,
MKL, 2 cores, float32), the time of a step of training over that one after another: 24 x 256 with
two modalities 0.96, MUDD at 24 x 256 0.99 and at 12 x 768 0.99.

Where modalities are joined for attention, products read and write their segments of the joined
tensor, if rows of a batch are long enough to be products of their own: then the step with two
modalities takes 0.96 once more, since nothing is copied and attention is one call.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels import blas
from multiway.runtime.kernels import linear_sum as one_sum
from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.kernels.linears.core import Part, Plan, computed
from multiway.runtime.kernels.packed_linear import packed_linear

LARGE = 1 << 23  # multiplications of all: below, a function of our own costs more than it saves
# Tokens of a segment, in one row of a batch: products of fewer lose more than copies take (of 256
# they take 1.03 of one of 1024, of 128 1.1).
LONG = 128


def linears(
    xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """linear(x_i, weight_i, bias_i) for each i.

    xs: [B, T_i, D_i], of which some may be the same tensor; weights: [F_i, D_i]; biases: [F_i]
    each, or none -> [B, T_i, F_i] each. A second backward pass through it raises RuntimeError, here
    and below.
    """
    biases = biases or ()
    if torch.compiler.is_compiling():  # sizes may be unknown
        given = enumerate(zip(xs, weights, strict=True))
        return tuple(F.linear(x, weight, *biases[i : i + 1]) for i, (x, weight) in given)
    inputs, numbers = _distinct(xs)
    if not _at_once(weights, *inputs, *biases):
        return _apart(inputs, numbers, weights, biases)
    plan = _whole(xs, numbers, biases)
    return computed(plan, (*inputs, *weights, *biases))


def linear_sums(
    residuals: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """residual_i + linear(x_i, weight_i, bias_i) for each i.

    residuals: [B, T_i, F_i]; xs: [B, T_i, D_i]; weights: [F_i, D_i]; biases: [F_i] each, or none
    -> [B, T_i, F_i] each.
    """
    biases = biases or ()
    inputs, numbers = _distinct(xs)
    if not _at_once(weights, *inputs, *biases, *residuals):
        given = enumerate(zip(residuals, xs, weights, strict=True))
        return tuple(one_sum.linear_sum(r, [x], [w], biases[i : i + 1]) for i, (r, x, w) in given)
    plan = _whole(xs, numbers, biases)
    return computed(plan, (*inputs, *weights, *biases, *residuals))


def joined_linears(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    count: int,
) -> tuple[Tensor, ...]:
    """linear(x_i, weight_ji, bias_ji) of all i, one behind the other along the tokens, for each j.

    xs: [B, T_i, D]; weights: `count` times one [F, D] for each x; biases: as many [F], or none ->
    [B, sum T_i, F], `count` times.
    """
    ways, biases = len(xs), biases or ()
    lengths = [x.shape[1] for x in xs]
    if torch.compiler.is_compiling() or not (
        min(lengths) >= LONG and _at_once(weights, *xs, *biases)
    ):
        ys = linears([*xs] * count, weights, biases)
        return tuple(torch.cat(ys[i : i + ways], 1) for i in range(0, len(ys), ways))
    plan = Plan(
        reads=[Part(i) for i in range(ways)] * count,
        writes=[part for j in range(count) for part in _segments(j, lengths)],
        lengths=lengths * count,
        batch=xs[0].shape[0],
        biases=bool(biases),
    )
    return computed(plan, (*xs, *weights, *biases))


def joined_sums(
    residuals: Sequence[Tensor],
    x: Tensor,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """residual_i + linear(x_i, weight_i, bias_i) for each segment i of x.

    residuals: [B, T_i, F]; x: [B, sum T_i, D]; sizes: T_i; weights: [F, D] each; biases: [F] each,
    or none -> [B, T_i, F] each.
    """
    biases = biases or ()
    if not (min(sizes) >= LONG and _at_once(weights, x, *biases, *residuals)):
        return linear_sums(residuals, torch.split(x, list(sizes), 1), weights, biases)
    plan = Plan(
        reads=_segments(0, sizes),
        writes=[Part(i) for i in range(len(sizes))],
        lengths=sizes,
        batch=x.shape[0],
        biases=bool(biases),
    )
    return computed(plan, (x, *weights, *biases, *residuals))


def _whole(xs: Sequence[Tensor], numbers: Sequence[int], biases: Sequence[Tensor]) -> Plan:
    """Linears of whole tensors, of which `numbers` says which is the x of each."""
    return Plan(
        reads=[Part(number) for number in numbers],
        writes=[Part(i) for i in range(len(xs))],
        lengths=[x.shape[1] for x in xs],
        batch=1,
        biases=bool(biases),
    )


def _segments(number: int, sizes: Sequence[int]) -> list[Part]:
    """The segments of a joined tensor."""
    begins = itertools.accumulate(sizes[:-1], initial=0)
    return [Part(number, begin, sum(sizes)) for begin in begins]


def _distinct(xs: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Every tensor that is there, once, and the number of each x among them."""
    inputs = {id(x): x for x in xs}
    places = {number: i for i, number in enumerate(inputs)}
    return list(inputs.values()), [places[id(x)] for x in xs]


def _at_once(weights: Sequence[Tensor], *others: Tensor) -> bool:
    x = others[0]
    work = x.numel() * sum(weight.shape[0] for weight in weights)
    return work >= LARGE and x.numel() > 0 and not autocasts(x) and blas.takes(*weights, *others)


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


def _refuses_joined_sums(
    residuals: Sequence[Tensor],
    x: Tensor,
    sizes: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
) -> str | None:
    return _refuses_sums(residuals, [x] * len(weights), weights, biases)


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
    Kernel(
        op="joined_linears",
        run=joined_linears,
        refuses=_refuses,
        doc="linears of segments, written to where segments are joined",
        portable=True,
    ),
    Kernel(
        op="joined_sums",
        run=joined_sums,
        refuses=_refuses_joined_sums,
        doc="linears of segments of a joined tensor, added to residuals",
    ),
]
