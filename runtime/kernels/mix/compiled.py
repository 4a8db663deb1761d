"""The mix in C (mix.c): float32 and float64 on the CPU, forward in bfloat16, too."""

from __future__ import annotations

import ctypes

import torch

from multiway.runtime.kernels import native
from multiway.runtime.kernels.mix.plan import NORMS, Grads, Inputs, Maybes, Plan, Wanted
from multiway.runtime.kernels.native.calls import (
    SUFFIX,
    SUFFIX_WITH_HALF,
    pointers,
    rows_of_all,
    threads,
    words,
)

SKIP, WRITE, ADD = range(3)

_Words = ctypes.POINTER(ctypes.c_int64)
_Pointers = ctypes.POINTER(ctypes.c_void_p)


class _Call(ctypes.Structure):
    """`struct call` of mix.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "sources", "ways", "norms")),
        *((name, ctypes.c_int64) for name in ("raws", "threads", "kind", "weight_stride")),
        ("eps", ctypes.c_double),
        ("history", _Pointers),
        ("history_strides", _Words),
        ("weights", ctypes.c_void_p),
        ("outputs", _Words),
        ("gains", _Pointers),
        ("biases", _Pointers),
        ("rows", _Pointers),
        ("grads", _Pointers),
        ("grad_strides", _Words),
        ("pushes", _Pointers),
        ("modes", _Words),
        ("dweights", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
    ]


def available(dtype: torch.dtype) -> bool:
    """Whether tensors of this type are taken here, both ways."""
    return dtype in SUFFIX and native.library("mix") is not None


def forwards(dtype: torch.dtype) -> bool:
    """Whether those are taken here in forward."""
    return dtype in SUFFIX_WITH_HALF and native.library("mix") is not None


def forward(inputs: Inputs, plan: Plan) -> list[torch.Tensor]:
    """The outputs, each [..., D]."""
    first = inputs.history[0]
    outputs = [first.new_empty(first.shape) for _ in plan.outputs]
    call, keep = _call(inputs, plan)
    if call.tokens:
        call.rows = pointers(outputs)
        _run("mix_forward", call, first.dtype)
    del keep
    return outputs


def backward(grads: Maybes, inputs: Inputs, plan: Plan, wanted: Wanted) -> Grads:
    """Gradients from those of the outputs, at least one of which is a tensor."""
    call, keep = _call(inputs, plan)
    used = {way for way, grad in zip(plan.outputs, grads, strict=True) if grad is not None}
    sources, modes = _buffers(inputs, wanted, zero=not call.tokens)
    rows, steps = rows_of_all(grads, inputs.history[0])
    keep.extend(rows)
    call.grads, call.grad_strides = pointers(rows), words(steps)
    call.pushes, call.modes = pointers(sources), words(modes)
    dweights = None
    if wanted.weights and not inputs.shared:
        make = torch.empty if len(used) == call.ways else torch.zeros
        dweights = make(inputs.weights.shape, dtype=inputs.weights.dtype)
        call.dweights = dweights.data_ptr()
    split = [call.norms * call.width] * 2 + [call.ways * call.sources]
    totals = torch.zeros(call.threads, sum(split), dtype=torch.float64)
    call.totals = totals.data_ptr()
    if call.tokens:
        _run("mix_backward", call, inputs.weights.dtype)
    dgains, dbiases, dshared = torch.split(totals.sum(0).to(inputs.weights.dtype), split)
    if wanted.weights and inputs.shared:
        dweights = dshared.clone().view(inputs.weights.shape)
    return Grads(
        sources=sources,
        weights=dweights,
        gains=list(dgains.view(-1, call.width).unbind()) if inputs.gains else [],
        biases=list(dbiases.view(-1, call.width).unbind()) if inputs.biases else [],
    )


def _call(inputs: Inputs, plan: Plan) -> tuple[_Call, list[torch.Tensor | None]]:
    """The call, and what must live as long as it does."""
    first, weights = inputs.history[0], inputs.weights.contiguous()
    ways, sources, width = weights.shape[-2], len(inputs.history), first.shape[-1]
    assert weights.shape[-1] == sources and max(plan.outputs) < ways and min(plan.outputs) >= 0
    assert inputs.shared or weights.shape[:-2] == first.shape[:-1]
    keep: list[torch.Tensor | None] = [weights]
    rows, steps = rows_of_all(inputs.history, first)
    vectors = [[x.contiguous() for x in each] for each in (inputs.gains, inputs.biases)]
    for each in vectors:
        assert len(each) in (0, len(plan.normed))
        assert all(x.shape == (width,) and x.dtype == first.dtype for x in each)
        keep.extend(each)
    keep.extend(rows)
    assert weights.dtype == first.dtype
    call = _Call(
        tokens=inputs.tokens,
        width=width,
        sources=sources,
        ways=ways,
        norms=len(plan.normed),
        raws=len(plan.raw),
        threads=threads(inputs.tokens * width * sources, inputs.tokens),
        kind=NORMS.index(plan.norm),
        weight_stride=0 if inputs.shared else ways * sources,
        eps=plan.eps,
        history=pointers(rows),
        history_strides=words(steps),
        weights=weights.data_ptr(),
        outputs=words(plan.outputs),
        gains=pointers(vectors[0]) if inputs.gains else None,
        biases=pointers(vectors[1]) if inputs.biases else None,
    )
    return call, keep


def _buffers(
    inputs: Inputs, wanted: Wanted, *, zero: bool
) -> tuple[list[torch.Tensor | None], list[int]]:
    """Where the gradient of each source goes, and how."""
    buffers: list[torch.Tensor | None] = []
    modes = []
    for x, want, into in zip(inputs.history, wanted.sources, wanted.into, strict=True):
        assert into is None or (into.is_contiguous() and into.shape == x.shape)
        modes.append(SKIP if not want else WRITE if into is None else ADD)
        new = torch.empty(x.shape, dtype=x.dtype) if want and into is None else into
        buffers.append(new if want else None)
    return buffers, modes


def _run(name: str, call: _Call, dtype: torch.dtype) -> None:
    loaded = native.library("mix")
    assert loaded is not None
    failed = getattr(loaded, f"{name}_{SUFFIX_WITH_HALF[dtype]}")(ctypes.byref(call))
    if failed:
        raise MemoryError(f"{name}: {failed} threads got no memory to work in")
