"""What a sublayer gives, added to every lane."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def write_lanes(lanes: Any, y: Any, weights: Any) -> Any:
    return lanes + weights * y.unsqueeze(-2)


def formula(lanes: Any, y: Any, weights: Any) -> Any:
    import numpy as np

    return lanes + np.einsum("...n,...d->...nd", weights[..., 0], y)


OP = Op(
    signature="lanes[B,T,N,D], y[B,T,D], weights[*,N,1] -> written[B,T,N,D]",
    reference=write_lanes,
    formula=formula,
    doc="Lane k plus weights[k] times y.",
    flops=lambda n: 2 * n["B"] * n["T"] * n["N"] * n["D"],
    tokenwise=("lanes", "y", "weights"),
    saves=("y", "weights"),
    samples=[
        Sample(shapes={"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "weights": (2, 3, 2, 1)}),
        Sample(shapes={"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "weights": (2, 1)}),
    ],
    rejects=[
        Reject(
            shapes={"lanes": (2, 3, 2, 4), "y": (2, 3, 8), "weights": (2, 1)},
            error="D is 4 in lanes but 8 in y",
        )
    ],
    cite="arXiv:2409.19606",
)
