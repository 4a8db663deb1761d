"""Projection to heads, norm over their channels, rotation by position: one pass each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels.attention.heads import compiled, plain
from multiway.runtime.kernels.kernel import Kernel


def rotate_heads(
    x: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    heads: int,
    norm: str,
    eps: float,
    pairs: str,
) -> Tensor:
    """split_heads, then `norm` over the channels of each head, then rotary: [B, H, T, E].

    x: [B, T, H * E], any strides; cos, sin: [B or 1, T, R] or neither, which turn the leading 2R
    channels of each head; gain, bias: [E], of the norm. norm: "rms_norm", "layer_norm" or "".
    pairs: "half" (j with j + R) or "adjacent" (2j with 2j + 1). The result lies in memory as
    [B, T, H, E]. No gradient for cos and sin where the C kernel runs (it takes no others). Through
    that a second backward pass raises RuntimeError.
    """
    if not norm and cos is None:
        return plain.split_heads(x, heads).transpose(1, 2)
    if not torch.compiler.is_compiling():
        plan = compiled.Plan(heads=heads, norm=norm, eps=eps, pairs=pairs)
        if compiled.takes(plan, x, cos, sin, gain, bias):
            if torch.is_grad_enabled() and _tracked(x, gain, bias):
                result: Tensor = _Rotated.apply(plan, x, cos, sin, gain, bias)  # type: ignore[no-untyped-call]
                return result
            return compiled.forward(plan, x, cos, sin, gain, bias)
    return plain.rotate_heads(x, cos, sin, gain, bias, heads=heads, norm=norm, eps=eps, pairs=pairs)


def _tracked(*tensors: Tensor | None) -> bool:
    return any(each is not None and each.requires_grad for each in tensors)


class _Rotated(torch.autograd.Function):
    """The C kernel. Norms are computed again in the backward pass: only x is kept for it."""

    @staticmethod
    def forward(ctx: Any, plan: compiled.Plan, *inputs: Tensor | None) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*inputs)
        return compiled.forward(plan, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_gain, of_bias = compiled.backward(ctx.plan, grad, *ctx.saved_tensors)
        return None, of_x, None, None, of_gain, of_bias


def _takes(
    x: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    heads: int,
    norm: str,
    eps: float,
    pairs: str,
) -> str | None:
    if cos is None or sin is None or not (cos.requires_grad or sin.requires_grad):
        return None
    return "cos and sin have gradients"


KERNELS = [
    Kernel(
        op="rotate_heads",
        run=rotate_heads,
        takes=_takes,
        traces=_takes,
        doc="heads, their norm and their rotation in one pass of C, or in few of torch",
        portable=True,
    )
]
