"""A linear for every expert, each over its own copy of a token."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def expert_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    y = (weight @ x.unsqueeze(-1)).squeeze(-1)
    return y if bias is None else y + bias


def formula(x: Any, weight: Any, bias: Any = None) -> Any:
    import numpy as np

    y = np.einsum("...xd,xfd->...xf", x, weight)
    return y if bias is None else np.add(y, bias)


OP = Op(
    signature="x[*,X,D], weight[X,F,D], bias?[X,F] -> y[*,X,F]",
    reference=expert_linear,
    formula=formula,
    doc="Copy i of every token times the transposed weight of expert i, plus its bias.",
    params={"weight": NORMAL, "bias": ZEROS},
    flops=lambda n: 2 * n["*"] * n["X"] * n["D"] * n["F"],
    tokenwise=("x",),
    saves=("x",),
    products=1,
    samples=[
        Sample(shapes={"x": (2, 3, 2, 4), "weight": (2, 5, 4), "bias": (2, 5)}),
        Sample(shapes={"x": (3, 2, 4), "weight": (2, 5, 4)}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 4), "weight": (2, 5, 4)},
            error="X is 3 in x but 2 in weight",
        )
    ],
    cite="arXiv:1701.06538",
)
