"""Attention over depth in C (routed.c): float32 and float64 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import SUFFIX, pointers, rows_of_all, threads, words
from multiway.runtime.kernels.routed.plan import Debt, Grads, Inputs, Maybes, Plan, State

NORMS = ("", "layer_norm", "rms_norm")  # numbered as in routed.c
WRITE, ADD = range(2)
BATCH = 4  # as in routed.c

_Words = ctypes.POINTER(ctypes.c_int64)
_Pointers = ctypes.POINTER(ctypes.c_void_p)


class _Call(ctypes.Structure):
    """`struct call` of routed.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "sources", "groups")),
        *((name, ctypes.c_int64) for name in ("norms", "threads", "kind")),
        *((name, ctypes.c_double) for name in ("eps", "norm_eps")),
        ("history", _Pointers),
        ("history_strides", _Words),
        ("scales", _Pointers),
        ("fresh", _Words),
        ("query", ctypes.c_void_p),
        ("gains", _Pointers),
        ("biases", _Pointers),
        ("average", ctypes.c_void_p),
        ("rows", _Pointers),
        ("scores", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("grads", _Pointers),
        ("grad_strides", _Words),
        ("dmix", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
    ]


class _Pull(ctypes.Structure):
    """`struct pull` of routed.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "sources", "readers")),
        *((name, ctypes.c_int64) for name in ("groups", "threads")),
        ("x", _Pointers),
        ("x_strides", _Words),
        ("modes", _Words),
        *((name, _Pointers) for name in ("grads", "queries", "parts", "outs")),
    ]


def available(dtype: torch.dtype) -> bool:
    """Whether tensors of this type are taken here."""
    return dtype in SUFFIX and native.library("routed") is not None


def forward(inputs: Inputs, plan: Plan, *, keep: bool) -> tuple[list[Tensor], State | None]:
    """The outputs, each [..., D]; with `keep` also what backward reads."""
    first = inputs.history[0]
    outputs = [torch.empty(first.shape, dtype=first.dtype) for _ in range(plan.normed)]
    call, kept = _call(inputs, plan)
    call.rows = pointers(outputs)
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
        _run("routed_forward", call, first.dtype)
    del kept
    return outputs, state


def backward(grads: Maybes, inputs: Inputs, plan: Plan, state: State) -> Grads:
    """From the gradients of the outputs, at least one of which is a tensor."""
    first = inputs.history[0]
    call, kept = _call(inputs, plan)
    rows, steps = rows_of_all(grads if plan.raw else [*grads, None], first)
    call.grads, call.grad_strides = pointers(rows), words(steps)
    kept += rows
    dmix = torch.empty(inputs.tokens, inputs.width, dtype=first.dtype)
    parts = first.new_empty(len(inputs.history), inputs.tokens, 2 * plan.groups + 1)
    totals = torch.zeros(call.threads, 1 + 2 * plan.normed, inputs.width, dtype=torch.float64)
    call.average, call.scores, call.lse = (
        x.data_ptr() for x in (state.average, state.scores, state.lse)
    )
    call.dmix, call.parts, call.totals = dmix.data_ptr(), parts.data_ptr(), totals.data_ptr()
    if call.tokens:
        _run("routed_backward", call, first.dtype)
    sums = totals.sum(0).to(first.dtype)
    debt = Debt(
        history=inputs.history, query=inputs.query, grad=dmix, parts=parts, groups=plan.groups
    )
    return Grads(
        query=sums[0],
        gains=sums[1 : 1 + plan.normed].unbind() if inputs.gains else [],
        biases=sums[1 + plan.normed :].unbind() if inputs.biases else [],
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
    rows, steps = rows_of_all(xs, xs[0])
    queries = [debt.query.contiguous() for debt in debts]
    call = _Pull(
        tokens=tokens,
        width=width,
        sources=len(sources),
        readers=len(debts),
        groups=debts[0].groups,
        threads=threads(tokens * width * len(debts), tokens),
        x=pointers(rows),
        x_strides=words(steps),
        modes=words(WRITE if each is None else ADD for each in into),
        grads=pointers(debt.grad for debt in debts),
        queries=pointers(queries),
        parts=pointers(debt.parts[source] for debt in debts for source in sources),
        outs=pointers(outs),
    )
    if tokens:
        loaded = native.library("routed")
        assert loaded is not None
        getattr(loaded, f"routed_pull_{SUFFIX[xs[0].dtype]}")(ctypes.byref(call))
    return outs


def _call(inputs: Inputs, plan: Plan) -> tuple[_Call, list[Tensor | None]]:
    """The call, and what must live as long as it does."""
    first, width, tokens = inputs.history[0], inputs.width, inputs.tokens
    assert width % plan.groups == 0 and inputs.query.shape == (width,)
    rows, steps = rows_of_all(inputs.history, first)
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
        history=pointers(rows),
        history_strides=words(steps),
        scales=pointers(inputs.scales),
        fresh=words(inputs.fresh),
        query=query.data_ptr(),
        gains=pointers(vectors[0]) if inputs.gains else None,
        biases=pointers(vectors[1]) if inputs.biases else None,
    )
    return call, kept


def _run(name: str, call: _Call, dtype: torch.dtype) -> None:
    loaded = native.library("routed")
    assert loaded is not None
    failed = getattr(loaded, f"{name}_{SUFFIX[dtype]}")(ctypes.byref(call))
    if failed:
        raise MemoryError(f"{name}: {failed} threads got no memory to work in")
