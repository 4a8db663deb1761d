"""Several linears of one input: one product, or one after another, whichever is faster.

Measured on the CPU (torch 2.13, MKL, 2 cores, float32, median of interleaved ratios; 1.00 is one
linear after another):

                                 one product     concatenated    apart, gradient of x
                                 over adjacent   first           summed in the products
    tokens x D -> widths         forward train   forward train   train
    2048 x 256 -> 2 x 682           0.74  0.97      0.80  0.96
    2048 x 256 -> 3 x 256           0.98  1.11      0.96                   1.00
    512 x 256  -> 3 x 256           1.07            1.11
    1024 x 768 -> 3 x 768           1.07            1.09                   0.98 - 1.00
    948 x 768  -> 3 x 768           1.06            1.06                   0.99 - 1.00
    8 x 768    -> 3 x 768           1.18            1.99                   0.93
    1 x 768    -> 3 x 768           1.20            3.31
    1 x 64     -> 3 x 64            2.87            1.30                   1.35

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

from multiway.runtime.kernels import prepacked
from multiway.runtime.kernels.kernel import Kernel, autocasts

MANY_TOKENS = 1_024
NARROW = 256  # channels of x
LARGE_PRODUCT = 1 << 23  # tokens x channels x sum of widths: a function of our own costs 20 us


def packed_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """One linear of x for each weight, in order.

    x: [*, D]; weights: [F_i, D] each; biases: [F_i] each, or none at all -> [*, F_i] each.
    The results may be views of one tensor [*, sum F_i], and so may the gradients of the weights be
    of one [sum F_i, D]: each is contiguous, no two overlap, and what changes one leaves the others.
    A second backward pass through it raises RuntimeError.
    """
    biases = biases or ()
    if (found := prepacked.linears(x, weights, biases)) is not None:
        return tuple(found)
    if torch.compiler.is_compiling() or not _large(x, weights):  # sizes may be unknown
        return _apart(x, weights, biases)
    if autocasts(x) or not _ordinary(x, *weights, *biases):
        return _apart(x, weights, biases)
    if _one_product(x, weights):
        if adjacent(weights) and (not biases or adjacent(biases)):
            widths = [weight.shape[0] for weight in weights]
            joined: Tensor = _Adjacent.apply(x, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
            return torch.split(joined, widths, -1)
        if len({weight.dtype for weight in weights}) == 1:
            return _concatenated(x, weights, biases)
    if x.requires_grad and torch.is_grad_enabled():
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


def adjoin(parameters: list[nn.Parameter]) -> None:
    """Moves parameters into one storage, one behind the other, so that `adjacent` holds.

    Values, shapes, `requires_grad`, gradients and the identity of the parameters stay. What else
    shared their storage no longer does. Copies (`deepcopy`) and `load_state_dict(assign=True)` lie
    apart again. Raises ValueError where types, devices or trailing axes differ, where one stands
    twice or where one is not an ordinary dense parameter.
    """
    if len(parameters) < 2:
        return
    first = parameters[0]
    if len({id(each) for each in parameters}) < len(parameters):
        raise ValueError("cannot adjoin parameters: one stands twice")
    for each in parameters:
        if type(each) is not nn.Parameter or each.layout != torch.strided or each.is_meta:
            raise ValueError(f"cannot adjoin {type(each).__name__} on {each.device}")
        if each.dtype != first.dtype or each.device != first.device:
            one, other = (f"{p.dtype} on {p.device}" for p in (first, each))
            raise ValueError(f"cannot adjoin parameters of {one} and {other}")
        if each.shape[1:] != first.shape[1:] or each.dim() == 0:
            one, other = (str(list(p.shape)) for p in (first, each))
            raise ValueError(f"cannot adjoin parameters of shapes {one} and {other}")
    if adjacent(parameters):
        return
    joined = torch.cat([each.detach() for each in parameters])
    for each, part in zip(
        parameters, torch.split(joined, [len(p) for p in parameters]), strict=True
    ):
        each.data = part


def _ordinary(*tensors: Tensor) -> bool:
    """Whether all are torch's own dense tensors, whose memory may be looked at."""
    return all(type(each) in (Tensor, nn.Parameter) and not each.is_meta for each in tensors)


def gains_from_adjacency(weights: Sequence[Tensor]) -> bool:
    """Whether one product over weights [F_i, D] is ever taken. Only then is moving them of use."""
    if not weights or not weights[0].is_cpu:
        return bool(weights)
    narrow = weights[0].shape[-1] <= NARROW
    return narrow and any(weight.shape[0] % 16 for weight in weights)


def _one_product(x: Tensor, weights: Sequence[Tensor]) -> bool:
    many = not x.is_cpu or x.numel() >= MANY_TOKENS * x.shape[-1]
    return many and gains_from_adjacency(weights)


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


def _concatenated(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    bias = torch.cat(list(biases)) if biases else None
    y = torch.nn.functional.linear(x, torch.cat(list(weights)), bias)
    return torch.split(y, [weight.shape[0] for weight in weights], -1)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor over the memory of adjacent ones, for reading only."""
    first = tensors[0].detach()
    rows = sum(each.shape[0] for each in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


class _Adjacent(torch.autograd.Function):
    """One product over adjacent weights: x, number of weights, weights, biases -> [*, sum F_i]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(x, *weights)
        bias = _joined(biases) if biases else None
        return torch.nn.functional.linear(x, _joined(weights), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        widths = [weight.shape[0] for weight in weights]
        need_x, _, *needs = ctx.needs_input_grad
        need_weights, need_biases = needs[: len(weights)], needs[len(weights) :]
        rows = grad.reshape(-1, grad.shape[-1])
        x_grad = (rows @ _joined(weights)).view(x.shape) if need_x else None
        inputs = x.reshape(-1, x.shape[-1])
        grads: list[Tensor | None] = [None] * len(needs)
        if all(need_weights):
            grads[: len(weights)] = torch.split(rows.t() @ inputs, widths)
        elif any(need_weights):
            for i, part in enumerate(torch.split(rows, widths, -1)):
                grads[i] = part.t() @ inputs if need_weights[i] else None
        if any(need_biases):
            parts = zip(torch.split(rows.sum(0), widths), need_biases, strict=True)
            grads[len(weights) :] = [part if needed else None for part, needed in parts]
        return x_grad, None, *grads


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


def _refuses(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> str | None:
    return None


KERNELS = [
    Kernel(
        op="packed_linear",
        run=packed_linear,
        refuses=_refuses,
        doc="one product over several weights where that is faster than one for each",
        portable=True,
    )
]
