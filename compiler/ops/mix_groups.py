"""A weighted sum over earlier hiddens with weights of their own for each group of channels."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Letters, Op, Reject, Sample
from multiway.compiler.graph.signature import group_width


def mix_groups(history: Any, weights: Any) -> Any:
    import torch

    width = history[0].shape[-1] // weights.shape[-2]
    terms = []
    for i, x in enumerate(history):
        terms.append(weights[..., i].repeat_interleave(width, -1) * x)
    return torch.stack(terms).sum(0)


def formula(history: Any, weights: Any) -> Any:
    import numpy as np

    groups = weights.shape[-2]
    pieces = np.array(history).reshape(len(history), *history[0].shape[:2], groups, -1)
    each = np.broadcast_to(weights, (*history[0].shape[:2], *weights.shape[-2:]))
    return np.einsum("btgl,lbtge->btge", each, pieces).reshape(history[0].shape)


def _flops(n: Letters) -> float:
    return 2 * n["L"] * n["B"] * n["T"] * n["D"]


OP = Op(
    signature="history[L,B,T,D]:list, weights[*,G,L] -> y[B,T,D]",
    reference=mix_groups,
    formula=formula,
    doc=(
        "Channel d is the sum over sources l of weights[g, l] times that of hidden l, where g is "
        "the group of neighbouring channels that d belongs to."
    ),
    derive=group_width,
    flops=_flops,
    tokenwise=("history", "weights"),
    saves=("history", "weights"),
    samples=[
        Sample(shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 3, 2, 3)}),
        Sample(shapes={"history": [(2, 3, 4)] * 3, "weights": (4, 3)}),
    ],
    rejects=[
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 4)},
            error="L is 3 in history but 4 in weights",
        ),
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 3, 3, 3)},
            error="D: 4 is not a multiple of G = 3",
        ),
    ],
    cite="arXiv:2607.27230",
)
