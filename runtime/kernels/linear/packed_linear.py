"""Several linears of one input: one after another, or one product where weights lie together.

Weights that a program folds norms into lie one behind the other (runtime/parameters/derived.py);
parameters of a model lie apart. Measured on the CPU (torch 2.13, MKL, 2 cores, float32, median of
interleaved ratios; 1.00 is one linear after another):

                                 one product     apart, gradient of x
                                 over adjacent   summed in the products
    tokens x D -> widths         forward         train
    2048 x 256 -> 2 x 682           0.74
    2048 x 256 -> 3 x 256           0.98            1.00
    512 x 256  -> 3 x 256           1.07
    1024 x 768 -> 3 x 768           1.07            0.98 - 1.00
    948 x 768  -> 3 x 768           1.06            0.99 - 1.00
    8 x 768    -> 3 x 768           1.18            0.93
    1 x 768    -> 3 x 768           1.20
    1 x 64     -> 3 x 64            2.87            1.35

So on the CPU one product pays for many tokens of few channels where a width is no multiple of 16
(MKL is slow there), and nowhere else: the bare product of small weights is faster when they are
adjacent (0.84), but to find that out costs more. Elsewhere than on the CPU one product is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels.kernel import Kernel, anything, autocasts
from multiway.runtime.kernels.linear import prepacked

MANY_TOKENS = 1_024
NARROW = 256  # channels of x
LARGE_PRODUCT = 1 << 23  # tokens x channels x sum of widths: a function of our own costs 20 us


def packed_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """One linear of x for each weight, in order.

    x: [*, D]; weights: [F_i, D] each; biases: [F_i] each, or none at all -> [*, F_i] each.
    The results may be views of one tensor [*, sum F_i]: what changes one leaves the others.
    A second backward pass through it raises RuntimeError.
    """
    biases = biases or ()
    if (found := prepacked.linears(x, weights, biases)) is not None:
        return tuple(found)
    if torch.compiler.is_compiling() or not _large(x, weights):  # sizes may be unknown
        return _apart(x, weights, biases)
    if autocasts(x) or not _ordinary(x, *weights, *biases):
        return _apart(x, weights, biases)
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in (x, *weights, *biases))
    if not learns and _one_product(x, weights, biases):
        bias = _joined(biases) if biases else None
        y = torch.nn.functional.linear(x, _joined(weights), bias)
        return torch.split(y, [weight.shape[0] for weight in weights], -1)
    if learns and x.requires_grad:
        results: tuple[Tensor, ...] = _Summed.apply(x, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
        return results
    return _apart(x, weights, biases)


def adjacent(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors, alike but for the first axis, lie one behind the other in one storage."""
    first = tensors[0]
    storage = first.untyped_storage().data_ptr()
    end = first.storage_offset()
    for each in tensors:
        alike = each.dtype == first.dtype and each.shape[1:] == first.shape[1:]
        if not (alike and each.is_contiguous() and each.storage_offset() == end):
            return False
        if each.untyped_storage().data_ptr() != storage:
            return False
        end += each.numel()
    return storage != 0


def _ordinary(*tensors: Tensor) -> bool:
    """Whether all are torch's own dense tensors, whose memory may be looked at."""
    return all(type(each) in (Tensor, nn.Parameter) and not each.is_meta for each in tensors)


def _one_product(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether one product over weights [F_i, D] is possible without a copy, and faster."""
    width = x.shape[-1]
    if x.is_cpu and not (
        x.numel() >= MANY_TOKENS * width
        and width <= NARROW
        and any(weight.shape[0] % 16 for weight in weights)
    ):
        return False
    return adjacent(weights) and (not biases or adjacent(biases))


def _large(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether to look any further; elsewhere than on the CPU calls cost more than what they do."""
    if len(weights) < 2 or not x.is_cpu:
        return len(weights) > 1
    return x.numel() * sum(weight.shape[0] for weight in weights) >= LARGE_PRODUCT


def _apart(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, ...]:
    linear = torch.nn.functional.linear
    if not biases:
        return tuple(linear(x, weight) for weight in weights)
    return tuple(linear(x, w, b) for w, b in zip(weights, biases, strict=True))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor over the memory of adjacent ones, for reading only."""
    first = tensors[0].detach()
    rows = sum(each.shape[0] for each in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


class _Summed(torch.autograd.Function):
    """One linear after another, whose backward pass sums the gradient of x inside the products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)
        return _apart(x, weights, biases)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        inputs = x.reshape(-1, x.shape[-1])
        rows = [None if each is None else each.reshape(-1, each.shape[-1]) for each in grads]
        needs = ctx.needs_input_grad[2:]
        x_grad = None
        for each, weight in zip(rows, weights, strict=True):
            if each is None:
                continue
            x_grad = each @ weight if x_grad is None else x_grad.addmm_(each, weight)
        of_weights = [
            each.t() @ inputs if each is not None and needed else None
            for each, needed in zip(rows, needs, strict=False)
        ]
        of_biases = [
            each.sum(0) if each is not None and needed else None
            for each, needed in zip(rows, needs[len(weights) :], strict=False)
        ]
        x_grad = None if x_grad is None else x_grad.view(x.shape)
        return x_grad, None, *of_weights, *of_biases


KERNELS = [
    Kernel(
        op="packed_linear",
        run=packed_linear,
        traces=anything,
        doc="one product over weights that lie together; else one gradient of x for all products",
        portable=True,
    )
]
