"""Gated activations in C (gated.c): float32 on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import threads

KINDS = ("silu", "gelu")  # numbered as in gated.c


class _Call(ctypes.Structure):
    """`struct call` of gated.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "kind", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "gate", "weights", "grad", "y")),
        *((name, ctypes.c_void_p) for name in ("dx", "dgate", "dweights")),
    ]


@dataclass(frozen=True, kw_only=True)
class Back:
    """y once more, and gradients of x, gate and the weights (None where there are none)."""

    y: Tensor
    x: Tensor
    gate: Tensor
    weights: Tensor | None


def forward(kind: str, x: Tensor, gate: Tensor, weights: Tensor | None) -> Tensor:
    """weights * act(gate) * x: x, gate [*, F], weights [*] -> [*, F]."""
    y = torch.empty_like(x)
    call = _call(kind, x, gate, weights)
    call.y = y.data_ptr()
    _run("gated_forward", call)
    return y


def backward(kind: str, x: Tensor, gate: Tensor, weights: Tensor | None, grad: Tensor) -> Back:
    """From the gradient of the result, which is overwritten."""
    assert grad.is_contiguous() and grad.dtype == x.dtype and grad.shape == x.shape
    found = Back(
        y=torch.empty_like(x),
        x=grad,
        gate=torch.empty_like(x),
        weights=None if weights is None else torch.empty_like(weights),
    )
    call = _call(kind, x, gate, weights)
    call.grad, call.y = grad.data_ptr(), found.y.data_ptr()
    call.dx, call.dgate = grad.data_ptr(), found.gate.data_ptr()
    call.dweights = None if found.weights is None else found.weights.data_ptr()
    _run("gated_backward", call)
    return found


def _call(kind: str, x: Tensor, gate: Tensor, weights: Tensor | None) -> _Call:
    width = x.shape[-1]
    rows = x.numel() // width
    assert x.shape == gate.shape and x.is_contiguous() and gate.is_contiguous()
    assert x.dtype == gate.dtype == torch.float32
    assert weights is None or (weights.numel() == rows and weights.is_contiguous())
    return _Call(
        rows=rows,
        width=width,
        kind=KINDS.index(kind),
        threads=threads(x.numel(), rows),
        x=x.data_ptr(),
        gate=gate.data_ptr(),
        weights=None if weights is None else weights.data_ptr(),
    )


def _run(name: str, call: _Call) -> None:
    loaded = native.library("gated")
    assert loaded is not None
    getattr(loaded, name)(ctypes.byref(call))
