"""One token of every sequence."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def take_token(x: Any, *, index: int) -> Any:
    return x[:, index]


def formula(x: Any, *, index: int) -> Any:
    import numpy as np

    return np.array([row[index] for row in x])


OP = Op(
    signature="x[B,T,D] -> y[B,D]",
    reference=take_token,
    formula=formula,
    doc="Token `index`.",
    attrs={"index": Attr("which token; negative counts from the end", 0)},
    memory="view",
    samples=[
        Sample(shapes={"x": (2, 3, 4)}, attrs={"index": 0}),
        Sample(shapes={"x": (2, 3, 4)}, attrs={"index": -1}),
    ],
    rejects=[Reject(shapes={"x": (2, 3)}, error="x has 2 axes, needs [B,T,D]: [2,3]")],
)
