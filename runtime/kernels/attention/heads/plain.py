"""The same in torch's operators, with as few passes over memory as they allow."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_heads(
    x: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    *,
    heads: int,
    norm: str,
    eps: float,
    pairs: str,
) -> Tensor:
    """As `rotate_heads` of the package. Works on [B, T, H, E], which attention reads as it lies."""
    y = split_heads(x, heads)
    if norm == "layer_norm":
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], gain, bias, eps)
    elif norm == "rms_norm":
        y = _rms_norm(y, gain, bias, eps)
    if cos is not None and sin is not None:
        turn = _turn_halves if pairs == "half" else _turn_adjacent
        y = turn(y, cos[:, :, None], sin[:, :, None])
    return y.transpose(1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H * E] -> [B, T, H, E], a view for any strides."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _rms_norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Three passes: the halves exchanged, one product, one product with a sum."""
    width = 2 * cos.shape[-1]
    turned = x[..., :width].to(cos.dtype)
    a, b = turned.chunk(2, dim=-1)
    exchanged = torch.cat([b, a], dim=-1)
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return _with_rest(torch.addcmul(turned * cos, exchanged, sin), x, width)


def _turn_adjacent(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One pass: a pair is a complex number. The compiler has no code for those."""
    width = 2 * cos.shape[-1]
    turned = x[..., :width].to(cos.dtype)
    if torch.compiler.is_compiling():
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        return _with_rest(y, x, width)
    steps = (turned.storage_offset(), *turned.stride()[:-1])
    if turned.stride(-1) != 1 or any(step % 2 for step in steps):
        turned = turned.contiguous()
    pairs = torch.view_as_complex(turned.reshape(*turned.shape[:-1], cos.shape[-1], 2))
    y = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    return _with_rest(y, x, width)


def _with_rest(turned: Tensor, x: Tensor, width: int) -> Tensor:
    turned = turned.to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)
