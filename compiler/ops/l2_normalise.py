"""Scales vectors to length 1."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Op, Reject, Sample


def l2_normalise(x: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(x, dim=-1)


OP = Op(
    signature="x[*,D] -> y[*,D]",
    reference=l2_normalise,
    doc="x / max(|x|, 1e-12).",
    flops=lambda n: 3 * n["*"] * n["D"],
    samples=[Sample(shapes={"x": (2, 3)})],
    rejects=[Reject(shapes={}, error="x is missing")],
)
