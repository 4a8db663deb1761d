"""Parts with experts: what every expert would give is computed for the tokens that ask for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.experts import gated
from multiway.runtime.kernels.experts.dispatch import Dispatch, dispatch, is_static
from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.kernels.rows.activations import activate


def moe_linear(
    x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None = None, *, count: int, most: int
) -> Tensor:
    """The sum over experts of gate times linear: x [*, D], gates [*, X], weight [X, F, D],
    bias [X, F] -> [*, F]. most: gates of a token that are not 0, at most; 0 for any number.
    """
    flat, scores = x.flatten(0, -2), gates.flatten(0, -2)
    plan = dispatch(scores, most)
    y = plan.sums(plan.linear(plan.rows(flat), weight), flat.shape[0])
    return _shaped(y if bias is None else y + scores @ bias, x)


def moe_ffn(
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    count: int,
    kind: str,
    norm: str,
    eps: float,
    most: int,
) -> Tensor:
    """The sum over experts of their gates times their feed-forward parts.

    x: [*, D]; gates: [*, X]; up, gate: [X, F, D]; down: [X, G, F]; up_bias, gate_bias, gain, shift:
    [X, F]; down_bias: [X, G] -> [*, G]. kind: of the activation. norm: "layer_norm", "rms_norm" or
    "" for none. most: as of moe_linear.
    """
    flat, scores = x.flatten(0, -2), gates.flatten(0, -2)
    plan = dispatch(scores, most)
    bare = not norm and up_bias is None and gate_bias is None
    if gate is not None and bare and gated.takes(kind, plan, flat, scores, up, gate, down):
        y = gated.gated_ffn(flat, plan, up, gate, down, kind=kind)
        return _shaped(y if down_bias is None else y + scores @ down_bias, x)
    rows = plan.rows(flat)
    inner = _linear(rows, up, up_bias, plan)
    if gate is None:
        hidden = activate(inner, kind)
    else:
        hidden = activate(_linear(rows, gate, gate_bias, plan), kind) * inner
    if norm:
        hidden = _normed(hidden, norm, eps)
        hidden = hidden if gain is None else hidden * gain.index_select(0, plan.experts)
        hidden = hidden if shift is None else hidden + shift.index_select(0, plan.experts)
    y = plan.sums(plan.linear(hidden, down), flat.shape[0])
    return _shaped(y if down_bias is None else y + scores @ down_bias, x)


def moe_affine(
    x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None = None, *, count: int, most: int
) -> Tensor:
    """The sum over experts of gate times (x * gain + shift): x [*, D], gates [*, X], weight and
    bias [X, D] -> [*, D]. Gains are summed first: no token is sent anywhere.
    """
    y: Tensor = x * (gates @ weight)
    return y if bias is None else y + gates @ bias


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, plan: Dispatch) -> Tensor:
    y = plan.linear(rows, weight)
    return y if bias is None else y + bias.index_select(0, plan.experts)


def _normed(x: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "layer_norm":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed: Tensor = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return normed.to(x.dtype)


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    return y.view(*x.shape[:-1], y.shape[-1])


def _takes(x: Tensor, gates: Tensor, *_: Any, most: int, **__: Any) -> str | None:
    if autocasts(x):
        return "autocast chooses the types of products"
    if most == 0 and is_static(gates):
        return "a token may go to any number of experts"
    return None


def _takes_affine(x: Tensor, *_: Any, **__: Any) -> str | None:
    return "autocast chooses the types of products" if autocasts(x) else None


KERNELS = [
    Kernel(
        op="moe_linear",
        run=moe_linear,
        takes=_takes,
        traces=_takes,
        doc="a linear of experts for the tokens that go to each",
        portable=True,
    ),
    Kernel(
        op="moe_ffn",
        run=moe_ffn,
        takes=_takes,
        traces=_takes,
        doc="a feed-forward part of experts for the tokens that go to each",
        portable=True,
    ),
    Kernel(
        op="moe_affine",
        run=moe_affine,
        takes=_takes_affine,
        traces=_takes_affine,
        doc="one gain and shift for a token, summed over its experts",
        portable=True,
    ),
]
