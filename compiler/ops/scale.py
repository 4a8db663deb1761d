"""A tensor times one learned number."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES
from multiway.compiler.graph.op import Op, Reject, Sample


def scale(x: Any, factor: Any) -> Any:
    return x * factor


def formula(x: Any, factor: Any) -> Any:
    import numpy as np

    return np.einsum("...,f->...", x, factor)


OP = Op(
    signature="x[*], factor[1] -> y[*]",
    reference=scale,
    formula=formula,
    doc="x times one number, as ReZero has it on what a sublayer puts out.",
    params={"factor": ONES},
    flops=lambda n: n["*"],
    tokenwise=("x",),
    saves=("x",),
    samples=[Sample(shapes={"x": (2, 3), "factor": (1,)})],
    rejects=[
        Reject(
            shapes={"x": (2, 3), "factor": (3,)},
            error="factor: 3 should be 1",
        )
    ],
    cite="arXiv:2003.04887",
)
