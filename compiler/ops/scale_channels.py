"""A learned factor for every channel."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES
from multiway.compiler.graph.op import Op, Reject, Sample


def scale_channels(x: Any, factor: Any) -> Any:
    return x * factor


def formula(x: Any, factor: Any) -> Any:
    import numpy as np

    return x @ np.diag(factor)


OP = Op(
    signature="x[*,D], factor[D] -> y[*,D]",
    reference=scale_channels,
    formula=formula,
    doc="x times one number a channel (LayerScale).",
    params={"factor": ONES},
    flops=lambda n: n["*"] * n["D"],
    tokenwise=("x",),
    saves=("x",),
    samples=[Sample(shapes={"x": (2, 3, 4), "factor": (4,)})],
    rejects=[
        Reject(shapes={"x": (2, 3), "factor": (4,)}, error="D is 3 in x but 4 in factor"),
    ],
    cite="arXiv:2103.17239",
)
