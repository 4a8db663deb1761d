"""Numbers the tokens of a sequence from 0."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def positions(x: Any) -> Any:
    import torch

    return torch.arange(x.shape[1], device=x.device)[None]


def formula(x: Any) -> Any:
    import numpy as np

    return np.array([list(range(x.shape[1]))])


OP = Op(
    signature="x[B,T,D] -> positions[1,T]:int",
    reference=positions,
    formula=formula,
    doc="0 .. T-1, the same for every row.",
    samples=[Sample(shapes={"x": (2, 3, 4)})],
    rejects=[Reject(shapes={"x": (2, 3)}, error="x has 2 axes, needs [B,T,D]: [2,3]")],
)
