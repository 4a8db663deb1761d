"""New lanes as mixtures of the old ones."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Letters, Op, Reject, Sample


def mix_lanes(lanes: Any, weights: Any) -> Any:
    import torch

    found = []
    for k in range(weights.shape[-1]):
        terms = [weights[..., j, k, None] * lanes[..., j, :] for j in range(lanes.shape[-2])]
        found.append(torch.stack(terms).sum(0))
    return torch.stack(found, -2)


def formula(lanes: Any, weights: Any) -> Any:
    import numpy as np

    return np.einsum("...jd,...jk->...kd", lanes, weights)


def _flops(n: Letters) -> float:
    return 2 * n["B"] * n["T"] * n["N"] ** 2 * n["D"]


OP = Op(
    signature="lanes[B,T,N,D], weights[*,N,N] -> mixed[B,T,N,D]",
    reference=mix_lanes,
    formula=formula,
    doc="New lane k is the sum over old lanes j of weights[j, k] times lane j.",
    flops=_flops,
    tokenwise=("lanes", "weights"),
    saves=("lanes", "weights"),
    samples=[
        Sample(shapes={"lanes": (2, 3, 2, 4), "weights": (2, 3, 2, 2)}),
        Sample(shapes={"lanes": (2, 3, 3, 4), "weights": (3, 3)}),
        Sample(shapes={"lanes": (3, 1, 2, 4), "weights": (3, 1, 2, 2)}),
    ],
    rejects=[
        Reject(
            shapes={"lanes": (2, 3, 2, 4), "weights": (2, 3)},
            error="N is 2 in lanes but 3 in weights",
        )
    ],
    cite="arXiv:2409.19606",
)
