"""The generator of mixing weights with its norm behind the first product.

rms_norm(x) W' is rsqrt(mean(x^2) + eps) times x W', so that the normalised x is never written: what
is scaled has a few dozen channels, not all of x. Static weights are the bias of the last product.
With gelu and a C compiler, forward is one function of C (token_weights_compiled.py), which takes
bfloat16, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import native
from multiway.runtime.kernels.kernel import Kernel, Widths, autocasts, traced
from multiway.runtime.kernels.mix import token_weights_compiled
from multiway.runtime.kernels.native.calls import alike
from multiway.runtime.kernels.rows.activations import activate

KINDS = ("gelu", "gelu_tanh", "silu", "relu")


def token_weights(
    x: Tensor,
    hidden: Tensor,
    output: Tensor,
    static: Tensor | None = None,
    *,
    ways: int,
    eps: float,
    kind: str,
) -> Tensor:
    """static + activation(rms_norm(x) hidden') output', as weights of each token.

    x: [B, T, D]; hidden: [F, D]; output: [C*L, F]; static: [C, L] -> [B, T, C, L].
    A second backward pass through it raises RuntimeError.
    """
    shape = (*x.shape[:-1], ways, output.shape[0] // ways)
    weights: Tensor
    if torch.is_grad_enabled():
        weights = _TokenWeights.apply(x, hidden, output, static, eps, kind)  # type: ignore[no-untyped-call]
    elif _in_c(kind, x, hidden, output, static):  # views cost 30 us each between large products
        return token_weights_compiled.forward(x, hidden, output, static, eps, shape, keep=False)[0]
    else:
        rows = x.reshape(-1, x.shape[-1])
        weights, *_ = _forward(rows, hidden, output, static, eps, kind, keep=False)
    return weights.view(shape)


class _TokenWeights(torch.autograd.Function):
    """x, hidden, output, static, eps, kind -> [tokens, C*L]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hidden: Tensor,
        output: Tensor,
        static: Tensor | None,
        eps: float,
        kind: str,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        keep = any(ctx.needs_input_grad)
        weights, raw, scale = _forward(rows, hidden, output, static, eps, kind, keep=keep)
        ctx.save_for_backward(rows, hidden, output, scale, raw)
        ctx.kind, ctx.static, ctx.shape = kind, None if static is None else static.shape, x.shape
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *given, scale, raw = ctx.saved_tensors
        dtype, wide = grad.dtype, raw.dtype  # of bfloat16 all is computed in float32
        rows, hidden, output, grad = (each.to(wide) for each in (*given, grad))
        need_x, need_hidden, need_output, need_static = ctx.needs_input_grad[:4]
        summed = grad if ctx.static and need_static else None
        active, of_raw, of_rows, of_static = _activated_backward(
            raw, rows, scale, grad @ output, summed, ctx.kind, of_rows=need_x
        )
        of_output = grad.t() @ active if need_output else None
        of_static = None if of_static is None else of_static.view(ctx.static)
        of_hidden = of_raw.t() @ rows if need_hidden else None
        of_x = None if of_rows is None else of_rows.addmm_(of_raw, hidden).view(ctx.shape)
        found = (of_x, of_hidden, of_output, of_static)
        return *(None if each is None else each.to(dtype) for each in found), None, None


def _forward(
    rows: Tensor,
    hidden: Tensor,
    output: Tensor,
    static: Tensor | None,
    eps: float,
    kind: str,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The weights [N, C*L]; for backward raw = rows hidden' [N, F] and the norm's scale [N, 1]."""
    if _in_c(kind, rows, hidden, output, static):
        shape = len(rows), len(output)
        return token_weights_compiled.forward(rows, hidden, output, static, eps, shape, keep=keep)
    raw = rows @ hidden.t()
    scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    scale = scale.square_().div_(rows.shape[1]).add_(eps).rsqrt_()
    active = activate(raw * scale, kind)
    if static is None:
        return active @ output.t(), raw, scale
    return torch.addmm(static.reshape(-1), active, output.t()), raw, scale


def _activated_backward(
    raw: Tensor,
    rows: Tensor,
    scale: Tensor,
    grad: Tensor,
    summed: Tensor | None,
    kind: str,
    *,
    of_rows: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """activation(raw * scale) once more; from its gradient those of raw and, through the scale, of
    the rows: d scale / d rows = -scale^3 rows / D, and the scale meets every channel of `raw`. Last
    the sum of `summed` over rows.
    """
    if _in_c(kind, rows, raw):
        return token_weights_compiled.backward(raw, rows, scale, grad, summed, of_rows=of_rows)
    with torch.enable_grad():
        leaf = (raw * scale).detach().requires_grad_()
        active = activate(leaf, kind)
    (of_normed,) = torch.autograd.grad(active, leaf, grad)
    through = None
    if of_rows:
        inner = (of_normed * raw).sum(1, keepdim=True)
        through = rows * inner.mul_(scale.pow(3)).div_(-rows.shape[1])
    return active.detach(), of_normed * scale, through, None if summed is None else summed.sum(0)


def _in_c(kind: str, rows: Tensor, *others: Tensor | None) -> bool:
    """Whether C takes it. What follows the operators that run is to see torch's."""
    if kind != "gelu" or rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not alike(rows, *others) or not rows.is_contiguous():
        return False
    return not traced() and native.library("token_weights") is not None


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    return None if attrs["kind"] in KINDS else f"activation {attrs['kind']}"


def _takes(
    x: Tensor,
    hidden: Tensor,
    output: Tensor,
    static: Tensor | None = None,
    *,
    ways: int,
    eps: float,
    kind: str,
) -> str | None:
    dtype = x.dtype
    if hidden.dtype is not dtype or output.dtype is not dtype:
        return "types differ"
    if autocasts(x) or (dtype.itemsize < 4 and not _in_c(kind, x, hidden, output, static)):
        return f"{dtype}: the norm is to be rounded before the product"
    return None


KERNELS = [
    Kernel(
        op="token_weights",
        run=token_weights,
        fits=_fits,
        takes=_takes,
        doc="the norm's scale behind the first product; with gelu one pass of C over tokens",
    )
]
