"""Attention over depth in C (depth_attention.c): float32 and float64 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.depth_attention.plan import Debt, Grads, Inputs, Maybes, Plan, State
from multiway.runtime.kernels.native.calls import (
    NORMS,
    SUFFIX,
    addresses,
    lay_out,
    rows_of_all,
    sum_apart,
    threads,
)

WRITE, ADD = range(2)
BATCH = 4  # as in depth_attention.c

_POINTERS = ("history", "history_strides", "scales", "fresh", "query", "gains", "biases", "average")
_MORE = ("rows", "scores", "lse", "grads", "grad_strides", "dmix", "parts", "totals", "sums")
_PULLED = ("x", "x_strides", "modes", "grads", "queries", "parts", "outs")


class _Call(ctypes.Structure):
    """`struct call` of depth_attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "sources", "groups")),
        *((name, ctypes.c_int64) for name in ("norms", "threads", "kind")),
        *((name, ctypes.c_double) for name in ("eps", "norm_eps")),
        *((name, ctypes.c_void_p) for name in (*_POINTERS, *_MORE)),
    ]


class _Pull(ctypes.Structure):
    """`struct pull` of depth_attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "sources", "readers")),
        *((name, ctypes.c_int64) for name in ("groups", "threads")),
        *((name, ctypes.c_void_p) for name in _PULLED),
    ]


def available(dtype: torch.dtype) -> bool:
    """Whether tensors of this type are taken here."""
    return dtype in SUFFIX and native.library("depth_attention") is not None


def forward(inputs: Inputs, plan: Plan, *, keep: bool) -> tuple[list[Tensor], State | None]:
    """The outputs, each [..., D]; with `keep` also what backward reads."""
    first = inputs.history[0]
    outputs = [torch.empty(first.shape, dtype=first.dtype) for _ in range(plan.normed)]
    call = _call(inputs, plan, outputs, rows=addresses(outputs))
    state = None
    if keep or plan.raw:
        average = torch.empty(first.shape, dtype=first.dtype)
        call.average = average.data_ptr()
        outputs += [average] if plan.raw else []
    if keep:
        scores = first.new_empty(len(inputs.history), inputs.tokens, plan.groups)
        state = State(average=average, scores=scores, lse=first.new_empty(scores.shape[1:]))
        call.scores, call.lse = scores.data_ptr(), state.lse.data_ptr()
    if call.tokens:
        _run("depth_attention_forward", call, first.dtype)
    return outputs, state


def backward(grads: Maybes, inputs: Inputs, plan: Plan, state: State) -> Grads:
    """From the gradients of the outputs, at least one of which is a tensor."""
    first = inputs.history[0]
    grads = grads if plan.raw else [*grads, None]
    rows, places, steps = rows_of_all(grads, first.shape, first.dtype)
    call = _call(inputs, plan, rows, grads=places, grad_strides=steps)
    dmix = torch.empty(inputs.tokens, inputs.width, dtype=first.dtype)
    parts = first.new_empty(len(inputs.history), inputs.tokens, 2 * plan.groups + 1)
    (sums,) = sum_apart(call, first, [(1 + 2 * plan.normed) * inputs.width])
    call.sums = sums.data_ptr()
    call.average, call.scores, call.lse = (
        x.data_ptr() for x in (state.average, state.scores, state.lse)
    )
    call.dmix, call.parts = dmix.data_ptr(), parts.data_ptr()
    if call.tokens:
        _run("depth_attention_backward", call, first.dtype)
    of_query, *vectors = sums.view(-1, inputs.width).unbind()
    debt = Debt(
        history=inputs.history, query=inputs.query, grad=dmix, parts=parts, groups=plan.groups
    )
    return Grads(
        query=of_query,
        gains=vectors[: plan.normed] if inputs.gains else [],
        biases=vectors[plan.normed :] if inputs.biases else [],
        debt=debt,
    )


def pull(sources: Sequence[int], debts: Sequence[Debt], into: Maybes) -> list[Tensor]:
    """The gradients of at most BATCH sources from all that is owed to them, for one number of
    groups. They are added to `into`, [..., D] each, where given."""
    xs = [debts[0].history[source] for source in sources]
    tokens, width = debts[0].grad.shape
    assert len(sources) <= BATCH
    assert all(each is None or each.is_contiguous() for each in into)
    outs = [
        x.new_empty(x.shape) if each is None else each for x, each in zip(xs, into, strict=True)
    ]
    rows, places, steps = rows_of_all(xs, xs[0].shape, xs[0].dtype)
    queries = [debt.query.contiguous() for debt in debts]
    call = _Pull(
        tokens=tokens,
        width=width,
        sources=len(sources),
        readers=len(debts),
        groups=debts[0].groups,
        threads=threads(tokens * width * len(debts), tokens),
    )
    lay_out(
        call,
        [*rows, *queries],
        x=places,
        x_strides=steps,
        modes=[WRITE if each is None else ADD for each in into],
        grads=addresses(debt.grad for debt in debts),
        queries=addresses(queries),
        parts=addresses(debt.parts[source] for debt in debts for source in sources),
        outs=addresses(outs),
    )
    if tokens:
        loaded = native.library("depth_attention")
        assert loaded is not None
        getattr(loaded, f"depth_attention_pull_{SUFFIX[xs[0].dtype]}")(ctypes.byref(call))
    return outs


def _call(inputs: Inputs, plan: Plan, keep: Maybes, **lists: list[int]) -> _Call:
    """The call with these lists, of what it is to keep, and with those of both ways."""
    first, width, tokens = inputs.history[0], inputs.width, inputs.tokens
    assert width % plan.groups == 0 and inputs.query.shape == (width,)
    rows, places, steps = rows_of_all(inputs.history, first.shape, first.dtype)
    query = inputs.query.contiguous()
    vectors = [[x.contiguous() for x in each] for each in (inputs.gains, inputs.biases)]
    for each in vectors:
        assert len(each) in (0, plan.normed) and all(x.shape == (width,) for x in each)
    assert all(x.numel() == tokens and x.is_contiguous() for x in inputs.scales)
    kept: list[Tensor | None] = [query, *vectors[0], *vectors[1], *rows]
    assert all(x is None or x.dtype == first.dtype for x in (*kept, *inputs.scales))
    call = _Call(
        tokens=tokens,
        width=width,
        sources=len(rows),
        groups=plan.groups,
        norms=plan.normed,
        threads=threads(tokens * width * len(rows), tokens),
        kind=NORMS.index(plan.norm),
        eps=plan.eps,
        norm_eps=plan.norm_eps,
        query=query.data_ptr(),
    )
    lists |= {"history": places, "history_strides": steps, "scales": addresses(inputs.scales)}
    gains, biases = addresses(vectors[0]), addresses(vectors[1])
    lay_out(call, [*keep, *kept], **lists, fresh=[*inputs.fresh], gains=gains, biases=biases)
    return call


def _run(name: str, call: _Call, dtype: torch.dtype) -> None:
    loaded = native.library("depth_attention")
    assert loaded is not None
    failed = getattr(loaded, f"{name}_{SUFFIX[dtype]}")(ctypes.byref(call))
    if failed:
        raise MemoryError(f"{name}: {failed} threads got no memory to work in")
