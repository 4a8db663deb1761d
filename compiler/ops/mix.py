"""Weighted sums over everything that earlier blocks put out."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Letters, Op, Reject, Sample


def mix(history: Any, weights: Any) -> Any:
    import torch

    ways = []
    for c in range(weights.shape[-2]):
        terms = [weights[..., c, i, None] * x for i, x in enumerate(history)]
        ways.append(torch.stack(terms).sum(0))
    return tuple(ways)


def formula(history: Any, weights: Any) -> Any:
    import numpy as np

    each = np.broadcast_to(weights, (*history[0].shape[:2], *weights.shape[-2:]))
    return tuple(np.einsum("btcl,lbtd->cbtd", each, np.array(history)))


def _flops(n: Letters) -> float:
    return 2 * n["C"] * n["L"] * n["B"] * n["T"] * n["D"]


OP = Op(
    signature="history[L,B,T,D]:list, weights[*,C,L] -> stream{C}[B,T,D]",
    reference=mix,
    formula=formula,
    doc="Way c is the sum over sources l of weights[c, l] times the hidden l.",
    flops=_flops,
    tokenwise=("history", "weights"),
    saves=("history", "weights"),
    samples=[
        Sample(shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 3, 2, 3)}),
        Sample(shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 3)}),
    ],
    rejects=[
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 4)},
            error="L is 3 in history but 4 in weights",
        )
    ],
    cite="arXiv:2502.12170",
)
