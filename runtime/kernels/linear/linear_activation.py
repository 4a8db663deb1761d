"""A linear, gelu and the norm behind it: what follows the product is one pass of C over its result.

Without gradients gelu and norm overwrite the product. With them the product alone is kept, gelu and
the statistics of its norm are computed again, and the gradient of the bias is summed on the way.

Measured on the CPU (torch 2.13, 2 cores, float32, milliseconds behind the product, torch's
operators first): 788 x 3072 with a layer norm 1.99 and 0.82, gelu alone 0.95 and 0.58, its backward
with the sum for the bias 2.29 and 0.93; 2048 x 1024 gelu alone 0.81 and 0.49, backward 2.06, 0.74.
In bfloat16, on another processor, 788 x 3072 with a layer norm 1.06 and 0.73, its backward 1.81 and
1.79; gelu alone 0.47 and 0.56, which is torch's business therefore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from multiway.runtime.kernels import native
from multiway.runtime.kernels.kernel import Kernel, Widths, autocasts
from multiway.runtime.kernels.linear import prepacked
from multiway.runtime.kernels.native.calls import alike
from multiway.runtime.kernels.rows import gelu_compiled
from multiway.runtime.kernels.rows.gelu_compiled import Plan

FEWEST = 1 << 17  # numbers in the result: below, a function of our own costs more than it saves
_SMALL = f"the result has fewer than {FEWEST} numbers"


def linear_activation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    kind: str,
    norm: str,
    eps: float,
) -> Tensor:
    """norm(gelu(x weight' + bias)) * gain + shift: kind is "gelu".

    x: [*, D]; weight: [F, D]; bias, gain, shift: [F] -> [*, F]. norm: "layer_norm", "rms_norm" or
    "", and then there are no gain and no shift. A second backward pass through it raises
    RuntimeError.
    """
    given = (x, weight, bias, gain, shift)
    if prepacked.serves(x, [weight]) and _not_in_c(*given, norm=norm) is not None:
        return _behind(prepacked.linear(x, weight, bias), gain, shift, norm=norm, eps=eps)
    plan = Plan(norm=norm, eps=eps)
    if torch.is_grad_enabled() and any(e is not None and e.requires_grad for e in given):
        y: Tensor = _LinearActivation.apply(plan, *given)  # type: ignore[no-untyped-call]
        return y
    hidden = prepacked.linear(x, weight, bias).contiguous()
    return gelu_compiled.forward(plan, hidden, gain, shift, out=hidden)


def _behind(
    hidden: Tensor, gain: Tensor | None, shift: Tensor | None, *, norm: str, eps: float
) -> Tensor:
    """What comes behind the product, in torch's operators."""
    y, width = F.gelu(hidden), hidden.shape[-1:]
    if norm == "layer_norm":
        return F.layer_norm(y, width, gain, shift, eps)
    if norm:
        y = F.rms_norm(y, width, gain, eps)
    return y if shift is None else y + shift


class _LinearActivation(torch.autograd.Function):
    """plan, x, weight, bias, gain, shift -> [*, F]."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gain: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        hidden = F.linear(x, weight, bias).contiguous()
        ctx.plan = plan
        ctx.save_for_backward(x, weight, hidden, gain)
        return gelu_compiled.forward(plan, hidden, gain, shift, out=torch.empty_like(hidden))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, hidden, gain = ctx.saved_tensors  # once: a checkpoint hands each out once
        need_x, need_weight, *needs = ctx.needs_input_grad[1:]
        found = gelu_compiled.backward(ctx.plan, hidden, gain, grad)
        rows = found.x.view(-1, found.x.shape[-1])
        of_x = (rows @ weight).view(x.shape) if need_x else None
        of_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None
        vectors = (found.summed, found.gain, found.shift)
        rest = [v if needed else None for v, needed in zip(vectors, needs, strict=True)]
        return None, of_x, of_weight, *rest


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    return None if attrs["kind"] == "gelu" else f"activation {attrs['kind']}"


def _takes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    kind: str,
    norm: str,
    eps: float,
) -> str | None:
    if not norm and (gain is not None or shift is not None):
        return "a gain without a norm"
    reason = _not_in_c(x, weight, bias, gain, shift, norm=norm)
    if reason is not None and not prepacked.serves(x, (weight,)):
        return reason
    return "autocast decides the types of products" if autocasts(x) else None


def _not_in_c(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    *,
    norm: str,
) -> str | None:
    if x.numel() // x.shape[-1] * weight.shape[0] < FEWEST:
        return _SMALL
    if not x.is_cpu:
        return f"x is on {x.device.type}"
    if x.dtype not in (gelu_compiled.TYPES if norm else (torch.float32,)):
        return f"x is {x.dtype}"
    if weight.shape[0] > gelu_compiled.WIDEST:
        return f"the result is wide: {weight.shape[0]}"
    if not alike(x, weight, bias, gain, shift):
        return "types differ"
    return native.refused("gelu")


KERNELS = [
    Kernel(
        op="linear_activation",
        run=linear_activation,
        fits=_fits,
        takes=_takes,
        doc="gelu, and the norm behind it, in one pass of C over the product",
    )
]
