"""The padding mask of a sequence that has none."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def no_padding(x: Any) -> Any:
    import torch

    return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)


def formula(x: Any) -> Any:
    import numpy as np

    return np.array([[False] * x.shape[1]] * x.shape[0])


OP = Op(
    signature="x[B,T,D] -> padding[B,T]:bool",
    reference=no_padding,
    formula=formula,
    doc="False everywhere.",
    samples=[Sample(shapes={"x": (2, 3, 4)})],
    rejects=[Reject(shapes={"x": (2, 3)}, error="x has 2 axes, needs [B,T,D]: [2,3]")],
)
