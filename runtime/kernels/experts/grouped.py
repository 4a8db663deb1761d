"""Products of rows that are sorted by group, each group with a matrix of its own.

`multiway::grouped_linear` is an operator of torch, so that torch.export and torch.compile keep it
as one call: the number of rows of a group is data, and no shape depends on it. On the CPU a product
a group is as fast as torch's own grouped_mm, which takes neither float64 nor every width. Median
ms, torch 2.13, 2 cores, float32, forward / gradient of rows / of weights:

    rows x D -> F, groups          grouped_mm        one product a group   dense, equal FLOPs
    4096 x 256 -> 512, 8          8.6  7.8  7.3       8.3  7.1  7.2         7.0  6.9  7.0
    2048 x 768 -> 1536, 8          30   30   30        30   30   29          28   26   26
    12288 x 256 -> 128, 64        6.7  6.6  6.9       6.8  6.7  7.1         4.6  4.9  4.5
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NARROW = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("multiway::grouped_linear", mutates_args=())
def grouped_linear(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Row r of group x times the transposed weight[x].

    rows: [R, D]; weight: [X, F, D]; ends: [X] int32, where each group of rows ends -> [R, F].
    Rows behind the last end give 0.
    """
    return _products(rows, weight.mT, ends)


@torch.library.custom_op("multiway::grouped_rows", mutates_args=())
def grouped_rows(grad: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Row r [F] of group x times weight[x] [F, D] -> [R, D]: the gradient of rows."""
    return _products(grad, weight, ends)


@torch.library.custom_op("multiway::grouped_outer", mutates_args=())
def grouped_outer(grad: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """The sum over the rows of a group of grad x rows: [R, F], [R, D] -> [X, F, D]."""
    if _fits(grad.t(), rows, ends):
        found: Tensor = torch.nn.functional.grouped_mm(grad.t(), rows, offs=ends)
        return found
    sizes = _sizes(ends)
    used = sum(sizes)
    return outer_by_size(grad[:used], rows[:used], sizes)


def _products(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """[R, D], [X, D, F] -> [R, F]."""
    if _fits(rows, matrices, ends):
        found: Tensor = torch.nn.functional.grouped_mm(rows, matrices, offs=ends)
        return found
    sizes = _sizes(ends)
    behind = rows.shape[0] - sum(sizes)
    made = products_by_size(rows[: rows.shape[0] - behind], matrices, sizes)
    return torch.nn.functional.pad(made, (0, 0, 0, behind)) if behind else made


def _sizes(ends: Tensor) -> list[int]:
    """How many rows each group has."""
    found: list[int] = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return found


def products_by_size(
    rows: Tensor, matrices: Tensor, sizes: list[int], add_to: Tensor | None = None
) -> Tensor:
    """Rows [R, D], of each group so many as `sizes` says, times its matrix of [X, D, F] -> [R, F].

    add_to: what the products are added to, in place.
    """
    made = rows.new_empty(rows.shape[0], matrices.shape[-1]) if add_to is None else add_to
    parts = torch.split(rows, sizes), matrices.unbind(), torch.split(made, sizes)
    for each, matrix, out in zip(*parts, strict=True):
        if add_to is None:
            torch.mm(each, matrix, out=out)
        else:
            out.addmm_(each, matrix)
    return made


def outer_by_size(grad: Tensor, rows: Tensor, sizes: list[int]) -> Tensor:
    """[R, F], [R, D], rows of each group -> [X, F, D]."""
    made = grad.new_empty(len(sizes), grad.shape[1], rows.shape[1])
    parts = torch.split(grad, sizes), torch.split(rows, sizes), made.unbind()
    for each, row, out in zip(*parts, strict=True):
        torch.mm(each.t(), row, out=out)
    return made


def _fits(a: Tensor, b: Tensor, ends: Tensor) -> bool:
    """Whether torch's grouped_mm is there, takes these, and gains: on the CPU it does not."""
    if a.device.type != "cuda" or not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    if a.dtype not in _NARROW or a.dtype != b.dtype:
        return False
    steps = [s * each.itemsize for each in (a, b) for s in each.stride() if s != 1]
    return all(step % 16 == 0 for step in steps)


@grouped_linear.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@grouped_rows.register_fake
def _(grad: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[2])


@grouped_outer.register_fake
def _(grad: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    return grad.new_empty(ends.shape[0], grad.shape[1], rows.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    needs_rows, needs_weight, _ = ctx.needs_input_grad
    of_rows = grouped_rows(grad, weight, ends) if needs_rows else None
    return of_rows, grouped_outer(grad, rows, ends) if needs_weight else None, None


grouped_linear.register_autograd(_backward, setup_context=_keep)


def grouped_by_size(rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    """`grouped_linear` where the numbers of rows of the groups, `sizes`, are known and add up to R.

    A step of 24 layers calls 216 operators otherwise, each with a way through torch's dispatcher
    and a look at `ends`. A second backward pass through it raises RuntimeError.
    """
    y: Tensor = _Grouped.apply(rows, weight, sizes)  # type: ignore[no-untyped-call]
    return y


class _Grouped(torch.autograd.Function):
    """rows [R, D], weight [X, F, D], sizes -> [R, F]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.sizes = sizes
        return products_by_size(rows, weight.mT, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        of_rows = products_by_size(grad, weight, ctx.sizes) if needs_rows else None
        return of_rows, outer_by_size(grad, rows, ctx.sizes) if needs_weight else None, None
