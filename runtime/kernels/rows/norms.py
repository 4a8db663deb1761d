"""Norms in one pass over memory each way: rms_norm, and layer_norm in bfloat16.

In float32 layer_norm gained nothing: torch's takes one pass, too. In bfloat16, 788 x 768, it takes
0.093 ms instead of 0.146, rms_norm 0.135 instead of 0.50.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import native
from multiway.runtime.kernels.kernel import Kernel, Widths
from multiway.runtime.kernels.native.calls import SUFFIX_WITH_HALF
from multiway.runtime.kernels.rows import norms_compiled
from multiway.runtime.kernels.rows.norms_compiled import Plan

# Numbers in x: below, a function of our own costs more than it saves (20 us and more).
FEWEST_OF_RMS_NORM = 1 << 15
FEWEST_OF_LAYER_NORM = 1 << 17
_SMALL = {
    fewest: f"x has fewer than {fewest} numbers"
    for fewest in (FEWEST_OF_RMS_NORM, FEWEST_OF_LAYER_NORM)
}


def rms_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight + bias: x [*, D], weight and bias [D].

    torch composes it on the CPU of six passes and keeps three tensors; here one and none but x.
    A second backward pass through the C kernel raises RuntimeError, here and below.
    """
    return _norm(x, weight, bias, Plan(norm="rms_norm", eps=eps))


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias: x [*, D], weight and bias [D]."""
    return _norm(x, weight, bias, Plan(norm="layer_norm", eps=eps))


def _norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, plan: Plan) -> Tensor:
    if torch.compiler.is_compiling() or not norms_compiled.takes(x, gain, bias):
        return _plain(x, gain, bias, plan)
    if torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (x, gain, bias)
    ):
        result: Tensor = _Norm.apply(plan, x, gain, bias)  # type: ignore[no-untyped-call]
        return result
    return norms_compiled.forward(plan, x, gain, bias)


def _plain(x: Tensor, gain: Tensor | None, bias: Tensor | None, plan: Plan) -> Tensor:
    """The same in torch's operators."""
    if plan.norm == "layer_norm":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], gain, bias, plan.eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = (wide * (wide.square().mean(-1, keepdim=True) + plan.eps).rsqrt()).to(x.dtype)
    if gain is not None:
        y = y * gain
    return y if bias is None else y + bias


class _Norm(torch.autograd.Function):
    """The C kernel. Statistics are computed again in the backward pass: only x is kept for it."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: Tensor, gain: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(x, gain, bias)
        return norms_compiled.forward(plan, x, gain, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias = ctx.saved_tensors
        return None, *norms_compiled.backward(ctx.plan, x, gain, bias, grad)


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    width = widths.get("D", 1)
    return None if 0 < width <= norms_compiled.WIDEST else f"rows of {width} numbers"


def _takes(x: Tensor, fewest: int) -> str | None:
    """torch's own composition is as good where there is no C, and for little to do."""
    if x.numel() < fewest:
        return _SMALL[fewest]
    if not x.is_cpu:
        return f"x is on {x.device.type}"
    if x.dtype not in SUFFIX_WITH_HALF:
        return f"x is {x.dtype}"
    return native.refused("norms")


def _takes_rms_norm(x: Tensor, *_: Any, **__: Any) -> str | None:
    return _takes(x, FEWEST_OF_RMS_NORM)


def _takes_layer_norm(x: Tensor, *_: Any, **__: Any) -> str | None:
    if x.dtype is not torch.bfloat16:
        return "torch's own takes one pass, too, but in bfloat16"
    return _takes(x, FEWEST_OF_LAYER_NORM)


KERNELS = [
    Kernel(
        op="rms_norm",
        run=rms_norm,
        fits=_fits,
        takes=_takes_rms_norm,
        doc="root mean square norm in one pass of C",
    ),
    Kernel(
        op="layer_norm",
        run=layer_norm,
        fits=_fits,
        takes=_takes_layer_norm,
        doc="layer norm in bfloat16 in one pass of C",
    ),
]
