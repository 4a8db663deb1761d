"""The sum of lanes, which ends hyper-connections."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def sum_lanes(lanes: Any) -> Any:
    return lanes.sum(-2)


def formula(lanes: Any) -> Any:
    import numpy as np

    return np.einsum("btnd->btd", lanes)


OP = Op(
    signature="lanes[B,T,N,D] -> x[B,T,D]",
    reference=sum_lanes,
    formula=formula,
    doc="The sum of all lanes, not their mean.",
    flops=lambda n: n["B"] * n["T"] * n["N"] * n["D"],
    tokenwise=("lanes",),
    samples=[Sample(shapes={"lanes": (2, 3, 2, 4)})],
    rejects=[
        Reject(shapes={"lanes": (2, 3, 4)}, error="lanes has 3 axes, needs [B,T,N,D]: [2,3,4]")
    ],
    cite="arXiv:2409.19606",
)
