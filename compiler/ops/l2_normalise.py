"""Scales vectors to length 1."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def l2_normalise(x: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(x, dim=-1)


def formula(x: Any) -> Any:
    import numpy as np

    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


OP = Op(
    signature="x[*,D] -> y[*,D]",
    reference=l2_normalise,
    formula=formula,
    doc="x / max(|x|, 1e-12).",
    flops=lambda n: 3 * n["*"] * n["D"],
    samples=[
        Sample(shapes={"x": (2, 3)}),
        Sample(shapes={"x": (2, 3, 4)}),
    ],
    rejects=[Reject(shapes={}, error="x is missing")],
)
