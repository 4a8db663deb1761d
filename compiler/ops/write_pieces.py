"""What a sublayer gives, cut into a piece for each lane."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def write_pieces(lanes: Any, y: Any, weights: Any) -> Any:
    return lanes + weights * y.unflatten(-1, (lanes.shape[-2], -1))


def formula(lanes: Any, y: Any, weights: Any) -> Any:
    import numpy as np

    pieces = np.stack(np.split(y, lanes.shape[2], axis=-1), axis=2)
    return lanes + np.einsum("...n,...ne->...ne", weights[..., 0], pieces)


OP = Op(
    signature="lanes[B,T,N,E], y[B,T,N*E], weights[*,N,1] -> written[B,T,N,E]",
    reference=write_pieces,
    formula=formula,
    doc="Lane k plus weights[k] times the k-th of N contiguous pieces of y.",
    flops=lambda n: 2 * n["B"] * n["T"] * n["N"] * n["E"],
    tokenwise=("lanes", "y", "weights"),
    saves=("y", "weights"),
    samples=[
        Sample(shapes={"lanes": (2, 3, 2, 4), "y": (2, 3, 8), "weights": (2, 3, 2, 1)}),
        Sample(shapes={"lanes": (2, 3, 2, 4), "y": (2, 3, 8), "weights": (2, 1)}),
    ],
    rejects=[
        Reject(
            shapes={"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "weights": (2, 1)},
            error="E is 4 in lanes but 2 in y",
        )
    ],
    cite="arXiv:2503.14125",
)
