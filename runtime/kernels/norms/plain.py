"""The backward of norms in torch's operators, for kernels that have a norm in them."""

from __future__ import annotations

import torch
from torch import Tensor

SUMMED = 512  # rows: torch's layer_norm adds those of a gain in order, and errs more, the more


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
    gains, biases = [], []
    for start in range(0, max(len(x), 1), SUMMED):
        part = slice(start, start + SUMMED)
        # The bias is there only to say that there is one: its numbers are not read.
        dx, dgain, dbias = torch.ops.aten.native_layer_norm_backward(
            dy[part], x[part], size, mean[part], scale[part], gain, gain, [True, True, True]
        )
        out[part] = dx
        gains.append(dgain)
        biases.append(dbias)
    return torch.stack(gains).sum(0), torch.stack(biases).sum(0)
