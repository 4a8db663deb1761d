"""gelu of rows in C (gelu.c), with or without the norm that follows it: float32 on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import threads

NORMS = ("", "layer_norm", "rms_norm")  # numbered as in gelu.c
WIDEST = 8192


class _Call(ctypes.Structure):
    """`struct call` of gelu.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "norm", "threads")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "gain", "shift", "grad", "out", "totals")),
    ]


class _Scaled(ctypes.Structure):
    """`struct scaled` of gelu.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "source_width", "threads")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "source", "scales", "out")),
        *((name, ctypes.c_void_p) for name in ("grad", "dx", "dsource")),
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
    """norm(gelu(x)) * gain + shift. x, out: [*, F], contiguous, may be one; gain, shift: [F]."""
    call = _call(plan, x)
    vectors = [None if each is None else each.contiguous() for each in (gain, shift)]
    call.gain, call.shift = (None if each is None else each.data_ptr() for each in vectors)
    call.out = out.data_ptr()
    _run("gelu_forward", call)
    return out


def backward(plan: Plan, x: Tensor, gain: Tensor | None, grad: Tensor) -> Grads:
    """Gradients from that of the result. x: [*, F], contiguous."""
    call = _call(plan, x)
    grad = grad.contiguous()
    scale = None if gain is None else gain.contiguous()
    dx = torch.empty_like(x)
    totals = torch.zeros(call.threads, 3, call.width, dtype=torch.float64)
    call.grad, call.gain = grad.data_ptr(), None if scale is None else scale.data_ptr()
    call.out, call.totals = dx.data_ptr(), totals.data_ptr()
    _run("gelu_backward", call)
    summed, of_gain, of_shift = totals.sum(0).to(x.dtype)
    return Grads(x=dx, summed=summed, gain=of_gain, shift=of_shift)


def scaled(x: Tensor, source: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """gelu(x * scale) [N, F] and scale = 1 / sqrt(mean(source^2) + eps) [N, 1].

    x: [N, F]; source: [N, D]; both contiguous.
    """
    out, scales = torch.empty_like(x), x.new_empty(len(x), 1)
    call = _scaled(x, source, scales, out)
    call.eps = eps
    _run("gelu_scaled", call)
    return out, scales


def scaled_backward(
    x: Tensor, source: Tensor, scales: Tensor, grad: Tensor, *, of_source: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """gelu(x * scale) once more, and from its gradient those of x and, if wanted, of the source.

    x, source, scales: what `scaled` had and gave; grad: [N, F].
    """
    grad, out, dx = grad.contiguous(), torch.empty_like(x), torch.empty_like(x)
    dsource = torch.empty_like(source) if of_source else None
    call = _scaled(x, source, scales, out)
    call.grad, call.dx = grad.data_ptr(), dx.data_ptr()
    call.dsource = None if dsource is None else dsource.data_ptr()
    _run("gelu_scaled_backward", call)
    return out, dx, dsource


def _scaled(x: Tensor, source: Tensor, scales: Tensor, out: Tensor) -> _Scaled:
    for each in (x, source, scales):
        assert each.is_contiguous() and each.dtype == torch.float32 and len(each) == len(x)
    return _Scaled(
        rows=len(x),
        width=x.shape[1],
        source_width=source.shape[1],
        threads=threads(x.numel() + source.numel(), len(x)),
        x=x.data_ptr(),
        source=source.data_ptr(),
        scales=scales.data_ptr(),
        out=out.data_ptr(),
    )


def _call(plan: Plan, x: Tensor) -> _Call:
    width = x.shape[-1]
    assert x.is_contiguous() and x.dtype == torch.float32 and 0 < width <= WIDEST
    rows = x.numel() // width
    return _Call(
        rows=rows,
        width=width,
        norm=NORMS.index(plan.norm),
        threads=threads(x.numel(), rows),
        eps=plan.eps,
        x=x.data_ptr(),
    )


def _run(name: str, call: _Call | _Scaled) -> None:
    loaded = native.library("gelu")
    assert loaded is not None
    getattr(loaded, name)(ctypes.byref(call))
