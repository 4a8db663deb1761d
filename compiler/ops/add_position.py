"""Adds a learned vector for every position."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL
from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def add_position(x: Any, positions: Any, weight: Any, *, offset: int = 0) -> Any:
    return x + weight[positions + offset]


def formula(x: Any, positions: Any, weight: Any, *, offset: int = 0) -> Any:
    import numpy as np

    y = x.copy()
    for b, t in np.ndindex(x.shape[:2]):
        y[b, t] += weight[positions[b % len(positions), t] + offset]
    return y


OP = Op(
    signature="x[B,T,D], positions[P,T]:int, weight[R,D] -> y[B,T,D]",
    reference=add_position,
    formula=formula,
    doc="Row `positions + offset` of the table is added; P is B, or 1 for all rows alike.",
    attrs={"offset": Attr("row of position 0", 0)},
    params={"weight": NORMAL},
    samples=[
        Sample(shapes={"x": (2, 3, 4), "positions": (1, 3), "weight": (6, 4)}, attrs={"offset": 2}),
        Sample(shapes={"x": (2, 3, 4), "positions": (2, 3), "weight": (6, 4)}, attrs={"offset": 0}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 4), "positions": (1, 5), "weight": (6, 4)},
            error="T is 3 in x but 5 in positions",
        )
    ],
)
