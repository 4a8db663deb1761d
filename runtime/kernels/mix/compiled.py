"""The mix in C (mix.c): float32, float64 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes

import torch

from multiway.runtime.kernels import native
from multiway.runtime.kernels.mix.plan import Grads, Inputs, Maybes, Plan, Wanted
from multiway.runtime.kernels.native.calls import (
    NORMS,
    SUFFIX_WITH_HALF,
    addresses,
    laid_out,
    rows_of_all,
    sum_apart,
    threads,
)

SKIP, WRITE, ADD = range(3)

_POINTERS = ("history", "history_strides", "weights", "outputs", "gains", "biases", "rows")
_BACKWARD = ("grads", "grad_strides", "pushes", "modes", "dweights", "totals", "sums")


class _Call(ctypes.Structure):
    """`struct call` of mix.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "sources", "ways", "norms")),
        *((name, ctypes.c_int64) for name in ("raws", "threads", "kind", "weight_stride")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*_POINTERS, *_BACKWARD)),
    ]


def available(dtype: torch.dtype) -> bool:
    """Whether tensors of this type are taken here."""
    return dtype in SUFFIX_WITH_HALF and native.library("mix") is not None


def forward(inputs: Inputs, plan: Plan) -> list[torch.Tensor]:
    """The outputs, each [..., D]."""
    first = inputs.history[0]
    shape = first.shape
    outputs = [first.new_empty(shape) for _ in plan.outputs]
    call = _call(inputs, plan, outputs, rows=addresses(outputs))
    if call.tokens:
        _run("mix_forward", call, first.dtype)
    return outputs


def backward(grads: Maybes, inputs: Inputs, plan: Plan, wanted: Wanted) -> Grads:
    """Gradients from those of the outputs, at least one of which is a tensor."""
    first = inputs.history[0]
    used = {way for way, grad in zip(plan.outputs, grads, strict=True) if grad is not None}
    rows, places, steps = rows_of_all(grads, first.shape, first.dtype)
    sources, modes = _buffers(inputs, wanted, zero=not inputs.tokens)
    lists = {"grads": places, "grad_strides": steps, "pushes": addresses(sources), "modes": modes}
    call = _call(inputs, plan, rows, **lists)
    dweights = None
    if wanted.weights and not inputs.shared:
        make = torch.empty if len(used) == call.ways else torch.zeros
        dweights = make(inputs.weights.shape, dtype=inputs.weights.dtype)
        call.dweights = dweights.data_ptr()
    shared = wanted.weights and inputs.shared
    sizes = [*[call.width] * (2 * call.norms), call.ways * call.sources]
    asked = [bool(inputs.gains)] * call.norms + [bool(inputs.biases)] * call.norms + [shared]
    *vectors, dshared = sums = sum_apart(call, first, sizes, asked)
    kept, (call.sums,) = laid_out([addresses(sums)])
    if call.tokens:
        _run("mix_backward", call, inputs.weights.dtype)
    del kept
    if shared:
        dweights = dshared.view(inputs.weights.shape)
    return Grads(
        sources=sources,
        weights=dweights,
        gains=vectors[: call.norms] if inputs.gains else [],
        biases=vectors[call.norms :] if inputs.biases else [],
    )


def _call(inputs: Inputs, plan: Plan, keep: Maybes, **lists: list[int]) -> _Call:
    """The call with these lists, of what it is to keep, and with those of both ways."""
    first, weights = inputs.history[0], inputs.weights.contiguous()
    shape, shared, outputs = weights.shape, inputs.shared, plan.outputs
    ways, sources, width, tokens = shape[-2], len(inputs.history), first.shape[-1], inputs.tokens
    assert shape[-1] == sources and max(outputs) < ways and min(outputs) >= 0
    assert weights.dtype is first.dtype and (shared or shape[:-2] == first.shape[:-1])
    rows, places, steps = rows_of_all(inputs.history, first.shape, first.dtype)
    vectors, row = len(plan.normed), (width,)
    gains, gains_at, _ = rows_of_all(inputs.gains, row, first.dtype)
    biases, biases_at, _ = rows_of_all(inputs.biases, row, first.dtype)
    assert len(gains) in (0, vectors) and len(biases) in (0, vectors)
    block, at = laid_out((places, steps, outputs, gains_at, biases_at, *lists.values()))
    call = _Call(  # in the order of the fields: names, and fields set later, take longer
        tokens, width, sources, ways, vectors, len(plan.raw),
        threads(tokens * width * sources, tokens), NORMS.index(plan.norm),
        0 if shared else ways * sources, plan.eps,
        at[0], at[1], weights.data_ptr(), *at[2:5],
    )  # fmt: skip
    for name, place in zip(lists, at[5:], strict=True):
        setattr(call, name, place)
    call.kept = (block, *keep, weights, *rows, *gains, *biases)
    return call


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
