"""What a sublayer reads: mixtures of lanes."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Letters, Op, Reject, Sample


def read_lanes(lanes: Any, weights: Any) -> Any:
    import torch

    found = []
    for r in range(weights.shape[-1]):
        terms = [weights[..., i, r, None] * lanes[..., i, :] for i in range(lanes.shape[-2])]
        found.append(torch.stack(terms).sum(0))
    return torch.cat(found, -1)


def formula(lanes: Any, weights: Any) -> Any:
    import numpy as np

    mixtures = np.einsum("...nd,...nr->...rd", lanes, weights)
    return mixtures.reshape(*lanes.shape[:2], -1)


def _flops(n: Letters) -> float:
    return 2 * n["B"] * n["T"] * n["N"] * n["R"] * n["D"]


OP = Op(
    signature="lanes[B,T,N,D], weights[*,N,R] -> x[B,T,R*D]",
    reference=read_lanes,
    formula=formula,
    doc="Mixture r is the sum over lanes i of weights[i, r] times lane i; mixtures end to end.",
    flops=_flops,
    tokenwise=("lanes", "weights"),
    saves=("lanes", "weights"),
    samples=[
        Sample(shapes={"lanes": (2, 3, 2, 4), "weights": (2, 3, 2, 1)}),
        Sample(shapes={"lanes": (2, 3, 2, 4), "weights": (2, 3)}),
    ],
    rejects=[
        Reject(
            shapes={"lanes": (2, 3, 2, 4), "weights": (3, 1)},
            error="N is 2 in lanes but 3 in weights",
        )
    ],
    cite="arXiv:2409.19606",
)
