"""Heads in C (rotate_heads.c): float32, float64 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
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

WIDEST = 1024

_SIZES = ("batch", "length", "heads", "width", "turned", "adjacent", "norm", "threads")
_STRIDES = ("x_batch", "x_token", "table_batch", "table_token")
_GRAD_STRIDES = ("grad_batch", "grad_head", "grad_token")
_POINTERS = ("x", "cos", "sin", "gain", "bias", "grad", "out", "totals", "dgain", "dbias")


class _Call(ctypes.Structure):
    """`struct call` of rotate_heads.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, *_STRIDES, *_GRAD_STRIDES)),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of a call."""

    heads: int
    norm: str
    eps: float
    pairs: str


def takes(plan: Plan, x: Tensor, *others: Tensor | None) -> bool:
    """Whether these tensors (x, cos, sin, gain, bias) are computed here."""
    cos, sin, gain, bias = others
    if x.dtype not in SUFFIX_WITH_HALF or x.shape[-1] // plan.heads > WIDEST:
        return False
    if not alike(x, gain, bias) or not (cos is None or sin is None or alike(cos, sin)):
        return False
    if cos is not None and cos.dtype is not x.dtype and cos.dtype is not _wide(x):
        return False
    return native.library("rotate_heads") is not None


def forward(plan: Plan, *inputs: Tensor | None) -> Tensor:
    """x [B, T, H * E], cos, sin, gain, bias -> [B, H, T, E], laid out as [B, T, H, E]."""
    x, *_ = inputs
    assert x is not None
    batch, length, channels = x.shape
    y = x.new_empty(batch, length, plan.heads, channels // plan.heads)
    _run("rotate_heads_forward", _call(plan, inputs, y), y)
    return y.transpose(1, 2)


def backward(
    plan: Plan, grad: Tensor, *inputs: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, gain and bias from that of the result."""
    x, *_, gain, bias = inputs
    assert x is not None
    grad, x_grad = _rows(grad), x.new_empty(x.shape)
    call = _call(plan, inputs, x_grad)
    call.grad_batch, call.grad_head, call.grad_token, _ = grad.stride()
    wanted = gain is not None, bias is not None
    sums = of_gain, of_bias = sum_apart(call, x_grad, [call.width] * 2, wanted)
    call.dgain, call.dbias = addresses(sums)
    call.grad = grad.data_ptr()
    _run("rotate_heads_backward", call, x_grad)
    return x_grad, of_gain, of_bias


def _call(plan: Plan, inputs: tuple[Tensor | None, ...], out: Tensor) -> _Call:
    """The call, which keeps what it reads. out: of the type of x."""
    x, cos, sin, gain, bias = inputs
    assert x is not None and (cos is None) == (sin is None)
    x = _rows(x)
    (batch, length, channels), (x_batch, x_token, _) = x.shape, x.stride()
    width = channels // plan.heads
    call = _Call(
        batch=batch,
        length=length,
        heads=plan.heads,
        width=width,
        adjacent=plan.pairs == "adjacent",
        norm=NORMS.index(plan.norm),
        threads=threads(x.numel(), batch * length),
        x_batch=x_batch,
        x_token=x_token,
        eps=plan.eps,
        x=x.data_ptr(),
        out=out.data_ptr(),
    )
    if cos is not None and sin is not None:
        cos, sin = _tables(call, cos, sin, _wide(x))
    if gain is not None:
        gain = _vector(gain, width)
        call.gain = gain.data_ptr()
    if bias is not None:
        bias = _vector(bias, width)
        call.bias = bias.data_ptr()
    call.kept = x, cos, sin, gain, bias
    return call


def _tables(call: _Call, cos: Tensor, sin: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin as the call reads them, and where."""
    if cos.dtype is not wide:
        cos, sin = cos.to(wide), sin.to(wide)
    if cos.stride(-1) != 1 or cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    (batch, length, turned), (of_batch, of_token, _) = cos.shape, cos.stride()
    assert cos.shape == sin.shape and sin.dtype is wide and length == call.length
    assert batch in (1, call.batch) and 2 * turned <= call.width
    call.turned, call.cos, call.sin = turned, cos.data_ptr(), sin.data_ptr()
    call.table_batch, call.table_token = of_batch if batch > 1 else 0, of_token
    return cos, sin


def _vector(x: Tensor, width: int) -> Tensor:
    assert x.shape == (width,)
    return _rows(x)


def _wide(x: Tensor) -> torch.dtype:
    """The type of the tables for x."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _run(name: str, call: _Call, out: Tensor) -> None:
    loaded = native.library("rotate_heads")
    assert loaded is not None
    if out.numel():
        function = getattr(loaded, f"{name}_{SUFFIX_WITH_HALF[out.dtype]}")
        check_memory(function(ctypes.byref(call)), name)
