"""A gain and a shift for every expert, behind a norm."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def expert_affine(x: Any, weight: Any, bias: Any = None) -> Any:
    y = x * weight
    return y if bias is None else y + bias


def formula(x: Any, weight: Any, bias: Any = None) -> Any:
    import numpy as np

    y = np.einsum("...xd,xd->...xd", x, weight)
    return y if bias is None else np.add(y, bias)


OP = Op(
    signature="x[*,X,D], weight[X,D], bias?[X,D] -> y[*,X,D]",
    reference=expert_affine,
    formula=formula,
    doc="Copy i of every token times the gain of expert i, channel by channel, plus its shift.",
    params={"weight": ONES, "bias": ZEROS},
    flops=lambda n: 2 * n["*"] * n["X"] * n["D"],
    tokenwise=("x",),
    saves=("x",),
    samples=[
        Sample(shapes={"x": (2, 3, 2, 4), "weight": (2, 4), "bias": (2, 4)}),
        Sample(shapes={"x": (3, 2, 4), "weight": (2, 4)}),
    ],
    rejects=[
        Reject(shapes={"x": (2, 3, 4), "weight": (3, 5)}, error="D is 4 in x but 5 in weight")
    ],
)
