"""Norms in C (norms.c): float32, float64 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import (
    NORMS,
    SUFFIX_WITH_HALF,
    addresses,
    alike,
    check_memory,
    sum_apart,
    threads,
)

WIDEST = 8192


class _Call(ctypes.Structure):
    """`struct call` of norms.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "norm", "threads")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "gain", "bias", "grad", "out")),
        *((name, ctypes.c_void_p) for name in ("totals", "dgain", "dbias")),
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of a call."""

    norm: str
    eps: float


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether these tensors are computed here."""
    if x.dtype not in SUFFIX_WITH_HALF or not alike(x, *others) or not 0 < x.shape[-1] <= WIDEST:
        return False
    return native.library("norms") is not None


def forward(plan: Plan, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """norm(x) * gain + bias: x [*, D], gain and bias [D] -> [*, D]."""
    out = x.new_empty(x.shape)
    _run("norms_forward", _call(plan, x, gain, bias, None, out), x)
    return out


def backward(
    plan: Plan, x: Tensor, gain: Tensor | None, bias: Tensor | None, grad: Tensor
) -> list[Tensor | None]:
    """Gradients of x, gain and bias from that of the result, None for one that is None."""
    assert grad.shape == x.shape
    dx = x.new_empty(x.shape)
    call = _call(plan, x, gain, bias, grad.contiguous(), dx)
    sums = sum_apart(call, x, [call.width] * 2, [gain is not None, bias is not None])
    call.dgain, call.dbias = addresses(sums)
    _run("norms_backward", call, x)
    return [dx, *sums]


def _call(
    plan: Plan,
    x: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    grad: Tensor | None,
    out: Tensor,
) -> _Call:
    """The call, which keeps what it reads and writes."""
    width = x.shape[-1]
    x = x.contiguous()
    rows = x.numel() // width
    vectors = [None if each is None else each.contiguous() for each in (gain, bias)]
    for each in vectors:
        assert each is None or each.shape == (width,)
    call = _Call(  # in the order of the fields: names, and fields set later, take longer
        rows, width, NORMS.index(plan.norm), threads(x.numel(), rows), plan.eps,
        *addresses((x, *vectors, grad, out)),
    )  # fmt: skip
    call.kept = x, vectors, grad, out
    return call


def _run(name: str, call: _Call, x: Tensor) -> None:
    loaded = native.library("norms")
    assert loaded is not None
    if x.numel():
        function = getattr(loaded, f"{name}_{SUFFIX_WITH_HALF[x.dtype]}")
        check_memory(function(ctypes.byref(call)), name)
