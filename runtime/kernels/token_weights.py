"""The generator of mixing weights with its norm behind the first product.

rms_norm(x) W' is rsqrt(mean(x^2) + eps) times x W', so that the normalised x is never written: what
is scaled has a few dozen channels, not all of x. Static weights are the bias of the last product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels.activations import FEWEST, activate, gelu_in_c
from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.kernels.native.calls import addressable
from multiway.runtime.kernels.norms import gelu

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
    weights: Tensor = _TokenWeights.apply(x, hidden, output, static, eps, kind)  # type: ignore[no-untyped-call]
    return weights.view(*x.shape[:-1], ways, output.shape[0] // ways)


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
        raw = rows @ hidden.t()
        active, scale = _activated(raw, rows, eps, kind)
        ctx.save_for_backward(rows, hidden, output, scale, raw)
        ctx.kind, ctx.static, ctx.shape = kind, None if static is None else static.shape, x.shape
        if static is None:
            return active @ output.t()
        return torch.addmm(static.reshape(-1), active, output.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rows, hidden, output, scale, raw = ctx.saved_tensors
        need_x, need_hidden, need_output, need_static = ctx.needs_input_grad[:4]
        active, of_raw, of_rows = _activated_backward(
            raw, rows, scale, grad @ output, ctx.kind, of_rows=need_x
        )
        of_output = grad.t() @ active if need_output else None
        of_static = grad.sum(0).view(ctx.static) if ctx.static and need_static else None
        of_hidden = of_raw.t() @ rows if need_hidden else None
        of_x = None if of_rows is None else of_rows.addmm_(of_raw, hidden).view(ctx.shape)
        return of_x, of_hidden, of_output, of_static, None, None


def _activated(raw: Tensor, rows: Tensor, eps: float, kind: str) -> tuple[Tensor, Tensor]:
    """activation(raw * scale) [N, F] and scale = 1 / sqrt(mean(rows^2) + eps) [N, 1]."""
    if _in_c(raw, rows, kind):
        return gelu.scaled(raw, rows, eps)
    scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    scale = scale.square_().div_(rows.shape[1]).add_(eps).rsqrt_()
    return activate(raw * scale, kind), scale


def _activated_backward(
    raw: Tensor, rows: Tensor, scale: Tensor, grad: Tensor, kind: str, *, of_rows: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """activation(raw * scale) once more; from its gradient those of raw and, through the scale, of
    the rows: d scale / d rows = -scale^3 rows / D, and the scale meets every channel of `raw`.
    """
    if _in_c(raw, rows, kind):
        return gelu.scaled_backward(raw, rows, scale, grad, of_source=of_rows)
    with torch.enable_grad():
        leaf = (raw * scale).detach().requires_grad_()
        active = activate(leaf, kind)
    (of_normed,) = torch.autograd.grad(active, leaf, grad)
    through = None
    if of_rows:
        inner = (of_normed * raw).sum(1, keepdim=True)
        through = rows * inner.mul_(scale.pow(3)).div_(-rows.shape[1])
    return active.detach(), of_normed * scale, through


def _in_c(raw: Tensor, rows: Tensor, kind: str) -> bool:
    fits = addressable(raw, rows) and rows.is_contiguous() and rows.numel() >= FEWEST
    return kind == "gelu" and fits and gelu_in_c(raw)


def _refuses(
    x: Tensor,
    hidden: Tensor,
    output: Tensor,
    static: Tensor | None = None,
    *,
    ways: int,
    eps: float,
    kind: str,
) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler fuses the norm itself"
    if kind not in KINDS:
        return f"activation {kind}"
    if x.dtype.itemsize < 4 or autocasts(x):
        return f"{x.dtype}: the norm is to be rounded before the product"
    if any(each.dtype != x.dtype for each in (hidden, output)):
        return "types differ"
    return None


KERNELS = [
    Kernel(
        op="token_weights",
        run=token_weights,
        refuses=_refuses,
        doc="the norm's scale behind the first product, static weights as the bias of the last",
    )
]
