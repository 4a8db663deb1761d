"""Activations by the names that a spec gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from multiway.runtime.kernels import native
from multiway.runtime.kernels.kernel import traced
from multiway.runtime.kernels.rows import gelu_compiled
from multiway.runtime.kernels.rows.gelu_compiled import Plan

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
_GELU = Plan(norm="", eps=0.0)
FEWEST = 1 << 17  # numbers in x: below, a function of our own costs more than it saves


def activate(x: Tensor, kind: str) -> Tensor:
    """A function of every element; see compiler/ops/activation.py. Raises KeyError.

    gelu of many float32 on the CPU is a pass of C: 4096 x 512 forward and backward take 1.3 ms
    instead of 1.6 (torch 2.13, 2 cores). Its second backward pass raises RuntimeError.
    """
    if kind == "gelu" and _gelu_in_c(x):
        y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return y
    return _FUNCTIONS[kind](x)


def _gelu_in_c(x: Tensor) -> bool:
    """Whether to compute gelu of x [*, F] in C: for float32 on the CPU. While a program is traced
    no size is looked at: the trace would hold for such sizes only.
    """
    if traced() or not x.is_cpu or x.dtype != torch.float32:
        return False
    return (
        x.numel() >= FEWEST
        and x.shape[-1] <= gelu_compiled.WIDEST
        and native.refused("gelu") is None
    )


class _Gelu(torch.autograd.Function):
    """x [*, F] -> [*, F]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return gelu_compiled.forward(_GELU, x, None, None, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gelu_compiled.backward(_GELU, x, None, grad).x
