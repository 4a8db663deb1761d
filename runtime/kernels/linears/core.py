"""Linears whose products are one call of C each way, on whole tensors and on segments of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import blas
from multiway.runtime.kernels.blas import Kind


class Part(NamedTuple):
    """What a linear reads or writes: rows of a tensor [B, T, D]."""

    number: int  # of the tensor
    begin: int = 0  # of its tokens
    step: int = 0  # tokens of the tensor; 0: the part is all of it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which parts each linear reads and writes, and what the tensors of a call are: inputs, a
    weight for each linear, a bias if there are any, a residual if there are any.
    """

    reads: Sequence[Part]
    writes: Sequence[Part]
    lengths: Sequence[int]  # tokens of each linear
    batch: int  # pieces of consecutive rows that a part falls into; 1 where all parts are whole
    biases: bool = False

    def parted(self, given: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Inputs, weights, biases, residuals."""
        first, count = max(part.number for part in self.reads) + 1, len(self.reads)
        second = first + count
        third = second + count * self.biases
        return given[:first], given[first:second], given[second:third], given[third:]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Every linear with every piece of its rows."""
        return ((i, b) for i in range(len(self.reads)) for b in range(self.batch))

    def at(self, parts: Sequence[Part], tensors: Sequence[Tensor | None], i: int, b: int) -> int:
        """Where piece b of the part of linear i begins in memory."""
        number, begin, step = parts[i]
        tensor = tensors[number]
        assert tensor is not None
        row = b * (step or self.lengths[i]) + begin
        return tensor.data_ptr() + row * tensor.shape[-1] * tensor.itemsize


def computed(plan: Plan, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of a plan for its tensors, of which every part that is written is one."""
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        found: tuple[Tensor, ...] = _Linears.apply(plan, *given)  # type: ignore[no-untyped-call]
        return found
    return _forward(plan, given)


class _Linears(torch.autograd.Function):
    """plan, inputs, weights, biases, residuals -> results."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        inputs, weights, _, _ = plan.parted(given)
        ctx.save_for_backward(*inputs, *weights)
        return _forward(plan, given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        xs, weights, _, _ = plan.parted([each.contiguous() for each in ctx.saved_tensors])
        need_x, need_weight, need_bias, need_residual = plan.parted(ctx.needs_input_grad[1:])
        rows = [grad.contiguous() for grad in grads]
        of_xs = _of_inputs(plan, xs, weights, rows, need_x)
        of_weights = _of_weights(plan, xs, weights, rows, need_weight)
        of_biases = [
            _of_bias(plan, rows, i) if needed else None for i, needed in enumerate(need_bias)
        ]
        of_residuals = [
            grad if needed else None for grad, needed in zip(grads, need_residual, strict=False)
        ]
        return None, *of_xs, *of_weights, *of_biases, *of_residuals


def _forward(plan: Plan, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    xs, weights, biases, residuals = plan.parted([each.contiguous() for each in given])
    made: dict[int, Tensor] = {}
    for i, (number, _, step) in enumerate(plan.writes):
        x = xs[plan.reads[i].number]
        length = step or plan.lengths[i]
        made.setdefault(number, x.new_empty(x.shape[0], length, weights[i].shape[0]))
    ys, pieces = list(made.values()), list(plan.pieces())
    blas.products(
        Kind.LINEAR,
        xs[0].dtype,
        rows=[_rows(plan, ys, i) for i, _ in pieces],
        columns=[weights[i].shape[0] for i, _ in pieces],
        depth=[weights[i].shape[1] for i, _ in pieces],
        a=[plan.at(plan.reads, xs, i, b) for i, b in pieces],
        b=[weights[i].data_ptr() for i, _ in pieces],
        c=[plan.at(plan.writes, ys, i, b) for i, b in pieces],
        first=[plan.at(plan.writes, residuals, i, b) for i, b in pieces if residuals],
        bias=[biases[i].data_ptr() for i, _ in pieces if biases],
    )
    return tuple(ys)


def _rows(plan: Plan, tensors: Sequence[Tensor], i: int) -> int:
    """How many rows a piece of linear i has, of results or their gradients."""
    return plan.lengths[i] * (tensors[plan.writes[i].number].shape[0] // plan.batch)


def _of_inputs(
    plan: Plan,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the inputs: for each part the sum over the linears that read it."""
    found = [torch.empty_like(x) if each else None for x, each in zip(xs, needed, strict=True)]
    readers: dict[Part, list[int]] = {}
    for i, part in enumerate(plan.reads):
        if needed[part.number]:
            readers.setdefault(part, []).append(i)
    most = max(map(len, readers.values()), default=0)
    # Every part has `most` products, some of which are over nothing.
    groups = [(mine, b) for mine in readers.values() for b in range(plan.batch)]
    terms = [(j, b) for mine, b in groups for j in (*mine, *[-1] * (most - len(mine)))]
    blas.products(
        Kind.PLAIN,
        xs[0].dtype,
        rows=[_rows(plan, grads, mine[0]) for mine, _ in groups],
        columns=[weights[mine[0]].shape[1] for mine, _ in groups],
        depth=[0 if j < 0 else weights[j].shape[0] for j, _ in terms],
        a=[0 if j < 0 else plan.at(plan.writes, grads, j, b) for j, b in terms],
        b=[0 if j < 0 else weights[j].data_ptr() for j, _ in terms],
        c=[plan.at(plan.reads, found, mine[0], b) for mine, b in groups],
    )
    return found


def _of_weights(
    plan: Plan,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the weights: for each the sum over the pieces of its rows."""
    found = [torch.empty_like(w) if each else None for w, each in zip(weights, needed, strict=True)]
    made = {i: each for i, each in enumerate(found) if each is not None}
    pieces = [(i, b) for i in made for b in range(plan.batch)]
    blas.products(
        Kind.OUTER,
        weights[0].dtype,
        rows=[each.shape[0] for each in made.values()],
        columns=[each.shape[1] for each in made.values()],
        depth=[_rows(plan, grads, i) for i, _ in pieces],
        a=[plan.at(plan.writes, grads, i, b) for i, b in pieces],
        b=[plan.at(plan.reads, xs, i, b) for i, b in pieces],
        c=[each.data_ptr() for each in made.values()],
    )
    return found


def _of_bias(plan: Plan, grads: Sequence[Tensor], i: int) -> Tensor:
    number, begin, step = plan.writes[i]
    grad = grads[number]
    return (grad.narrow(1, begin, plan.lengths[i]) if step else grad).flatten(0, -2).sum(0)
