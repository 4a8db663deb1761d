"""Attention over depth: a router's weights, the average of a history by them, and its norms.

A plain list of hiddens goes through the operator `multiway::depth_attention` (op.py); a History of
the mix's, which `append` makes in eager mode, through one whose sources draw their gradients from
all routers at once (history.py). Either runs the C kernel (compiled.py, depth_attention.c) or
torch's operators (plain.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.depth_attention import op
from multiway.runtime.kernels.depth_attention.history import attend
from multiway.runtime.kernels.depth_attention.plan import Plan, wide_type
from multiway.runtime.kernels.kernel import Kernel, Widths, traced
from multiway.runtime.kernels.mix import MISSHAPEN, History, unlike
from multiway.runtime.kernels.native.calls import NORMS

__all__ = ["KERNELS", "depth_attention"]


def depth_attention(
    history: Sequence[Tensor],
    query: Tensor,
    weight: Tensor | None = None,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    groups: int,
    eps: float,
    norm: str,
    norm_eps: float,
    normed: int,
    raw: int,
) -> tuple[Tensor, ...]:
    """The average of a history by softmax over depth, normalised and as it is.

    history: L of [B, T, D]; query, weight: [D]; gains, biases: [D] for each of `normed` norms, or
    none. The score of a source in a group of D / groups channels is the sum over them of
    query * weight * source / sqrt(mean(source ** 2) + eps). Returns, each [B, T, D],
    norm(average) * gain + bias for each norm, then the average if `raw`.
    """
    gains, biases = gains or (), biases or ()
    if not normed and not raw:
        return ()
    wide = wide_type(query)
    whole = query.to(wide) if weight is None else query.to(wide) * weight.to(wide)
    plan = Plan(groups=groups, eps=eps, norm=norm, norm_eps=norm_eps, normed=normed, raw=bool(raw))
    if not traced():
        if isinstance(history, History) and history.intact():
            return attend(history, whole, gains, biases, plan)
        if not torch.is_grad_enabled():
            inputs = op.unscaled(list(history), whole, gains, biases)
            return tuple(op.forward(inputs, plan, keep=False)[0])
    tensors = list(history), whole, list(gains), list(biases)
    settings = groups, eps, norm, norm_eps, normed, bool(raw)
    return tuple(op.depth_attention_op(*tensors, *settings))


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    norm = attrs["norm"]
    if norm not in NORMS or (attrs["normed"] and not norm):
        return f"{norm}: no kernel for this norm"
    return None if widths.get("D", 1) else "rows without elements"


def _takes(
    history: Sequence[Tensor],
    query: Tensor,
    weight: Tensor | None = None,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    groups: int,
    normed: int,
    **_: Any,
) -> str | None:
    gains, biases = gains or (), biases or ()
    vectors = (query, *gains, *biases, *(() if weight is None else (weight,)))
    reason = unlike(history, vectors, shapes=True)
    if reason is not None:
        return reason
    size = history[0].shape[-1:]
    fits = {len(gains), len(biases)} <= {0, normed} and not size[0] % groups
    return None if fits and all(x.shape == size for x in vectors) else MISSHAPEN


def _traces(
    history: Sequence[Tensor],
    query: Tensor,
    weight: Tensor | None = None,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    **_: Any,
) -> str | None:
    others = (query, *(gains or ()), *(biases or ()))
    return unlike(history, others if weight is None else (*others, weight))


KERNELS = [
    Kernel(
        op="depth_attention",
        run=depth_attention,
        fits=_fits,
        takes=_takes,
        traces=_traces,
        doc="Scores, softmax and sum in one reading of the history, each way.",
    ),
]
