"""The backward of norms in torch's operators, for kernels that have a norm in them."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_backward(
    dy: Tensor, x: Tensor, gain: Tensor | None, *, norm: str, eps: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the gain and of the bias [D], there or not, from dy [N, D]; that of x [N, D] is
    written to `out`.
    """
    gain = None if gain is None else gain.to(x.dtype)
    if norm == "layer_norm":
        return _layer_norm_backward(dy, x, gain, eps, out)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    unit = x * scale
    product = dy * unit
    dgain = product.sum(0)
    g = dy if gain is None else dy * gain
    along = (product if gain is None else product.mul_(gain)).mean(-1, keepdim=True)
    torch.addcmul(g, unit, along, value=-1, out=out).mul_(scale)
    return dgain, dy.sum(0)


def _layer_norm_backward(
    dy: Tensor, x: Tensor, gain: Tensor | None, eps: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    size = x.shape[-1:]
    _, mean, scale = torch.native_layer_norm(x, size, None, None, eps)
    gain = x.new_ones(size) if gain is None else gain
    # The bias is there only to say that there is one: its numbers are not read.
    dx, *_ = torch.ops.aten.native_layer_norm_backward(
        dy, x, size, mean, scale, gain, gain, [True, False, False]
    )
    out.copy_(dx)
    # torch adds up the rows of a gain in order and errs more, the more there are: products do not.
    ones, unit = x.new_ones(len(x)), (x - mean).mul_(scale).mul_(dy)
    return ones @ unit, ones @ dy
