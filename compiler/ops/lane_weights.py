"""Weights of lanes: learned ones, plus those made from the token."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, Init
from multiway.compiler.graph.op import Op, Reject, Sample


def lane_weights(dynamic: Any = None, scale: Any = None, static: Any = None) -> Any:
    if dynamic is None:
        return static
    dynamic = dynamic if scale is None else scale * dynamic
    return dynamic if static is None else static + dynamic


def formula(dynamic: Any = None, scale: Any = None, static: Any = None) -> Any:
    import numpy as np

    if dynamic is None:
        return static
    y = np.einsum("...,s->...", dynamic, np.ones(1) if scale is None else scale)
    return y if static is None else np.add(y, static)


OP = Op(
    signature="dynamic?[*,N,C], scale?[1], static?[N,C] -> weights[*,N,C]",
    reference=lane_weights,
    formula=formula,
    doc="static + scale * dynamic, of what is given: the weights of lane n in C sums.",
    params={"scale": Init(kind="constant", value=0.01), "static": ONES},
    flops=lambda n: 2 * n["*"] * n["N"] * n["C"],
    tokenwise=("dynamic",),
    saves=("dynamic",),
    samples=[
        Sample(shapes={"dynamic": (2, 3, 4, 5), "scale": (1,), "static": (4, 5)}),
        Sample(shapes={"dynamic": (2, 3, 4, 5), "scale": (1,)}),
        Sample(shapes={"dynamic": (2, 3, 4, 1), "static": (4, 1)}),
        Sample(shapes={"static": (4, 5)}),
    ],
    rejects=[
        Reject(
            shapes={"dynamic": (2, 3, 4, 5), "static": (4, 6)},
            error="C is 5 in dynamic but 6 in static",
        )
    ],
    cite="arXiv:2409.19606",
)
