"""Heads in C (rotate_heads.c): float32, float64 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import SUFFIX_WITH_HALF, alike, threads

NORMS = ("", "rms_norm", "layer_norm")  # numbered as in rotate_heads.c
WIDEST = 1024

_SIZES = ("batch", "length", "heads", "width", "turned", "adjacent", "norm", "threads")
_STRIDES = ("x_batch", "x_token", "table_batch", "table_token")
_GRAD_STRIDES = ("grad_batch", "grad_head", "grad_token")
_POINTERS = ("x", "cos", "sin", "gain", "bias", "grad", "out", "totals")


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
    if x.dtype not in SUFFIX_WITH_HALF or x.shape[-1] // plan.heads > WIDEST:
        return False
    cos, sin, *affine = others
    if not alike(x, *affine) or not all(
        each is None or (alike(each) and each.dtype in (x.dtype, _wide(x))) for each in (cos, sin)
    ):
        return False
    return native.library("rotate_heads") is not None


def forward(plan: Plan, *inputs: Tensor | None) -> Tensor:
    """x [B, T, H * E], cos, sin, gain, bias -> [B, H, T, E], laid out as [B, T, H, E]."""
    call, kept = _call(plan, inputs)
    y = kept[0].new_empty(call.batch, call.length, call.heads, call.width)
    call.out = y.data_ptr()
    _run("rotate_heads_forward", call, y)
    return y.transpose(1, 2)


def backward(
    plan: Plan, grad: Tensor, *inputs: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, gain and bias from that of the result."""
    call, kept = _call(plan, inputs)
    grad = _rows(grad)
    call.grad_batch, call.grad_head, call.grad_token, _ = grad.stride()
    x_grad = kept[0].new_empty(call.batch, call.length, call.heads * call.width)
    totals = torch.zeros(call.threads, 2, call.width, dtype=torch.float64)
    call.grad, call.out, call.totals = grad.data_ptr(), x_grad.data_ptr(), totals.data_ptr()
    _run("rotate_heads_backward", call, x_grad)
    *_, gain, bias = inputs
    of_gain, of_bias = totals.sum(0).to(x_grad.dtype).unbind()
    return x_grad, None if gain is None else of_gain, None if bias is None else of_bias


def _call(plan: Plan, inputs: tuple[Tensor | None, ...]) -> tuple[_Call, list[Tensor]]:
    """The call, and what must live as long as it does: x first."""
    given = [None if each is None else _rows(each) for each in inputs]
    x, cos, sin, gain, bias = given
    cos, sin = (None if each is None else each.to(_wide(x)) for each in (cos, sin))
    assert x is not None and (cos is None) == (sin is None)
    batch, length, channels = x.shape
    width = channels // plan.heads
    turned = table_batch = table_token = 0
    if cos is not None and sin is not None:
        turned = cos.shape[-1]
        if cos.stride() != sin.stride():
            cos, sin = cos.contiguous(), sin.contiguous()
        table_batch, table_token = cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1)
        assert cos.shape == sin.shape == (cos.shape[0], length, turned)
        assert cos.shape[0] in (1, batch) and 2 * turned <= width
    assert all(each is None or each.shape == (width,) for each in (gain, bias))
    call = _Call(
        batch=batch,
        length=length,
        heads=plan.heads,
        width=width,
        turned=turned,
        adjacent=plan.pairs == "adjacent",
        norm=NORMS.index(plan.norm),
        threads=threads(x.numel(), batch * length),
        x_batch=x.stride(0),
        x_token=x.stride(1),
        table_batch=table_batch,
        table_token=table_token,
        eps=plan.eps,
    )
    for name, each in zip(
        ("x", "cos", "sin", "gain", "bias"), (x, cos, sin, gain, bias), strict=True
    ):
        setattr(call, name, None if each is None else each.data_ptr())
    return call, [each for each in (x, cos, sin, gain, bias) if each is not None]


def _wide(x: Tensor | None) -> torch.dtype:
    """The type of the tables for x."""
    assert x is not None
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _run(name: str, call: _Call, out: Tensor) -> None:
    loaded = native.library("rotate_heads")
    assert loaded is not None
    if out.numel():
        getattr(loaded, f"{name}_{SUFFIX_WITH_HALF[out.dtype]}")(ctypes.byref(call))
