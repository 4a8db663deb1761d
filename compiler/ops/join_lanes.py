"""Lanes laid end to end."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def join_lanes(lanes: Any) -> Any:
    return lanes.flatten(-2)


def formula(lanes: Any) -> Any:
    import numpy as np

    return np.concatenate([lanes[:, :, i] for i in range(lanes.shape[2])], axis=-1)


OP = Op(
    signature="lanes[B,T,N,D] -> x[B,T,N*D]",
    reference=join_lanes,
    formula=formula,
    doc="Lane-major: channel i * D + d is channel d of lane i. The inverse of split_lanes.",
    tokenwise=("lanes",),
    memory="view",
    samples=[Sample(shapes={"lanes": (2, 3, 2, 4)})],
    rejects=[
        Reject(shapes={"lanes": (2, 3, 4)}, error="lanes has 3 axes, needs [B,T,N,D]: [2,3,4]")
    ],
    cite="arXiv:2503.14125",
)
