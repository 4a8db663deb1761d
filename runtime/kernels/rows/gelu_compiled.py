"""gelu of rows in C (gelu.c), with or without the norm that follows it, on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import NORMS, check_memory, sum_apart, threads

WIDEST = 8192
TYPES = (torch.float32, torch.bfloat16)
_SUMS = ("summed", "of_gain", "of_shift")


class _Call(ctypes.Structure):
    """`struct call` of gelu.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "norm", "threads", "half")),
        ("eps", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in ("gain", "shift", "x", "grad", "out", "totals", *_SUMS)
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of a call. norm: layer_norm, rms_norm, or empty for gelu alone."""

    norm: str
    eps: float


@dataclass(frozen=True, kw_only=True)
class Grads:
    """Gradients of x and of its sum over rows, and those of gain and shift (0 without a norm)."""

    x: Tensor
    summed: Tensor
    gain: Tensor
    shift: Tensor


def forward(
    plan: Plan, x: Tensor, gain: Tensor | None, shift: Tensor | None, out: Tensor
) -> Tensor:
    """norm(gelu(x)) * gain + shift. x, out: [*, F], contiguous, may be one; gain, shift: [F].

    All of one type; nothing is rounded to bfloat16 but the result.
    """
    call = _call(plan, x)
    vectors = [None if each is None else each.float().contiguous() for each in (gain, shift)]
    call.gain, call.shift = (None if each is None else each.data_ptr() for each in vectors)
    assert out.dtype == x.dtype and out.shape == x.shape and out.is_contiguous()
    call.out = out.data_ptr()
    _run("gelu_forward", call)
    return out


def backward(plan: Plan, x: Tensor, gain: Tensor | None, grad: Tensor) -> Grads:
    """Gradients from that of the result. x: [*, F], contiguous."""
    call = _call(plan, x)
    grad = grad.contiguous()
    assert grad.dtype == x.dtype and grad.shape == x.shape
    scale = None if gain is None else gain.float().contiguous()
    dx = torch.empty_like(x)
    sums = sum_apart(call, x, [call.width] * 3)
    for name, each in zip(_SUMS, sums, strict=True):
        setattr(call, name, each.data_ptr())
    call.grad, call.gain = grad.data_ptr(), None if scale is None else scale.data_ptr()
    call.out = dx.data_ptr()
    _run("gelu_backward", call)
    return Grads(x=dx, summed=sums[0], gain=sums[1], shift=sums[2])


def _call(plan: Plan, x: Tensor) -> _Call:
    width = x.shape[-1]
    assert x.is_contiguous() and x.dtype in TYPES and 0 < width <= WIDEST
    rows = x.numel() // width
    return _Call(
        rows=rows,
        width=width,
        norm=NORMS.index(plan.norm),
        threads=threads(x.numel(), rows),
        half=x.dtype == torch.bfloat16,
        eps=plan.eps,
        x=x.data_ptr(),
    )


def _run(name: str, call: _Call) -> None:
    loaded = native.library("gelu")
    assert loaded is not None
    check_memory(getattr(loaded, name)(ctypes.byref(call)), name)
