"""Norms in one pass over memory each way: rms_norm, and layer_norm in bfloat16.

In float32 layer_norm gained nothing: torch's takes one pass, too. In bfloat16, 788 x 768, it takes
0.093 ms instead of 0.146, rms_norm 0.135 instead of 0.50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    return _norms(x, [weight], [bias], Plan(ways=1, norm="rms_norm", eps=eps))[0]


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias: x [*, D], weight and bias [D]."""
    return _norms(x, [weight], [bias], Plan(ways=1, norm="layer_norm", eps=eps))[0]


def _norms(
    x: Tensor, gains: Sequence[Tensor | None], biases: Sequence[Tensor | None], plan: Plan
) -> tuple[Tensor, ...]:
    affine = (*gains, *biases)
    if torch.compiler.is_compiling() or not norms_compiled.takes(x, *affine):
        return _plain(x, affine, plan)
    if torch.is_grad_enabled() and any(e is not None and e.requires_grad for e in (x, *affine)):
        results: tuple[Tensor, ...] = _Norms.apply(plan, x, *affine)  # type: ignore[no-untyped-call]
        return results
    return norms_compiled.forward(plan, x, affine)


def _plain(x: Tensor, affine: Sequence[Tensor | None], plan: Plan) -> tuple[Tensor, ...]:
    """The same in torch's operators."""
    pairs = list(zip(affine[: plan.ways], affine[plan.ways :], strict=True))
    if plan.norm == "layer_norm":
        compute = torch.nn.functional.layer_norm
        return tuple(compute(x, x.shape[-1:], *pair, plan.eps) for pair in pairs)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = (wide * (wide.square().mean(-1, keepdim=True) + plan.eps).rsqrt()).to(x.dtype)
    scaled = [normed if gain is None else normed * gain for gain, _ in pairs]
    return tuple(
        y if bias is None else y + bias for y, (_, bias) in zip(scaled, pairs, strict=True)
    )


class _Norms(torch.autograd.Function):
    """The C kernel. Statistics are computed again in the backward pass: only x is kept for it."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *affine: Tensor | None) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *affine)
        return norms_compiled.forward(plan, x, affine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *affine = ctx.saved_tensors
        if all(each is None for each in grads):
            return (None,) * (2 + len(affine))
        return None, *norms_compiled.backward(ctx.plan, x, affine, grads)


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
