"""Attention over depth: how much of each earlier hidden a sublayer reads."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.op import Attr, Letters, Op, Reject, Sample
from multiway.compiler.graph.precision import wide
from multiway.compiler.graph.signature import group_width


def depth_router(history: Any, query: Any, weight: Any = None, *, groups: int, eps: float) -> Any:
    import torch

    query = wide(query) if weight is None else wide(query) * wide(weight)
    scores = []
    for x in history:
        key = wide(x) * (wide(x).square().mean(-1, keepdim=True) + eps).rsqrt()
        scores.append((key * query).unflatten(-1, (groups, -1)).sum(-1))
    return torch.stack(scores, -1).softmax(-1).to(history[0].dtype)


def formula(history: Any, query: Any, weight: Any = None, *, groups: int, eps: float) -> Any:
    import numpy as np

    sources = np.array(history)
    normed = sources / np.sqrt(np.mean(sources**2, -1, keepdims=True) + eps)
    normed = normed.reshape(*normed.shape[:-1], groups, -1)
    gains = (query if weight is None else query * weight).reshape(groups, -1)
    e = np.exp(np.einsum("lbtge,ge->btgl", normed, gains))
    return e / e.sum(-1, keepdims=True)


def _flops(n: Letters) -> float:
    return 5 * n["L"] * n["B"] * n["T"] * n["D"]


OP = Op(
    signature="history[L,B,T,D]:list, query[D], weight?[D] -> weights[B,T,G,L]",
    reference=depth_router,
    formula=formula,
    doc=(
        "Softmax over the sources, each group of neighbouring channels for itself. The score of a "
        "source is the sum over the group's channels of query * weight * rms_norm(source), whose "
        "norm is that of the whole width; no 1 / sqrt factor. In at least float32."
    ),
    attrs={
        "groups": Attr("number of groups of channels with weights of their own", 1, letter="G"),
        "eps": Attr("of the norm", 1e-6),
    },
    params={"query": ZEROS, "weight": ONES},
    derive=group_width,
    flops=_flops,
    tokenwise=("history",),
    saves=("history", "output"),
    samples=[
        Sample(
            shapes={"history": [(2, 3, 4)] * 3, "query": (4,), "weight": (4,)},
            attrs={"groups": 2, "eps": 1e-6},
        ),
        Sample(
            shapes={"history": [(2, 3, 4)] * 3, "query": (4,)}, attrs={"groups": 1, "eps": 1e-5}
        ),
    ],
    rejects=[
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "query": (4,), "weight": (5,)},
            error="D is 4 in history but 5 in weight",
        ),
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "query": (4,)},
            attrs={"groups": 3},
            error="D: 4 is not a multiple of G = 3",
        ),
    ],
    cite="arXiv:2603.15031",
)
