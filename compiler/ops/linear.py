"""A matrix product with an optional bias."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    import torch

    return torch.nn.functional.linear(x, weight, bias)


def formula(x: Any, weight: Any, bias: Any = None) -> Any:
    import numpy as np

    y = np.einsum("...d,fd->...f", x, weight)
    return y if bias is None else np.add(y, bias)


OP = Op(
    signature="x[*,D], weight[F,D], bias?[F] -> y[*,F]",
    reference=linear,
    formula=formula,
    doc="x times the transposed weight, plus bias.",
    params={"weight": NORMAL, "bias": ZEROS},
    flops=lambda n: 2 * n["*"] * n["D"] * n["F"],
    tokenwise=("x",),
    saves=("x",),
    products=1,
    packs="each",
    samples=[
        Sample(shapes={"x": (2, 3, 4), "weight": (5, 4), "bias": (5,)}),
        Sample(shapes={"x": (3, 4), "weight": (5, 4)}),
    ],
    rejects=[Reject(shapes={"x": (2, 4), "weight": (5, 3)}, error="D is 4 in x but 3 in weight")],
)
