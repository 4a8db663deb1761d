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
    """Gradients of x, gate and the weights if there are any; the result, if wanted once more."""

    x: Tensor
    gate: Tensor
    y: Tensor | None = None
    weights: Tensor | None = None


def forward(kind: str, x: Tensor, gate: Tensor, weights: Tensor | None) -> Tensor:
    """weights * act(gate) * x: x, gate [*, F], weights [*] -> [*, F]."""
    y = torch.empty_like(x)
    call = _call(kind, x, gate, weights)
    call.y = y.data_ptr()
    _run("gated_forward", call)
    return y


def backward(
    kind: str,
    x: Tensor,
    gate: Tensor,
    weights: Tensor | None,
    grad: Tensor,
    *,
    again: bool,
    own: bool = False,
) -> Back:
    """Gradients from that of the result. again: make the result, too. own: grad may be changed."""
    assert grad.is_contiguous() and grad.dtype == x.dtype and grad.shape == x.shape
    found = Back(
        x=grad if own else torch.empty_like(x),
        gate=torch.empty_like(x),
        y=torch.empty_like(x) if again else None,
        weights=None if weights is None else torch.empty_like(weights),
    )
    call = _call(kind, x, gate, weights)
    call.grad, call.dx, call.dgate = (e.data_ptr() for e in (grad, found.x, found.gate))
    call.y, call.dweights = (
        None if each is None else each.data_ptr() for each in (found.y, found.weights)
    )
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
