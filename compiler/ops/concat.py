"""Joins segments into one sequence."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def concat(parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=1)


def formula(parts: Any) -> Any:
    import numpy as np

    return np.array([np.vstack(rows) for rows in zip(*parts, strict=True)])


OP = Op(
    signature="parts+[B,T+,*]:any -> y[B,T+,*]:any",
    reference=concat,
    formula=formula,
    doc="One after the other along the token axis.",
    samples=[Sample(shapes={"parts": [(2, 3, 4), (2, 1, 4)]})],
    rejects=[
        Reject(
            shapes={"parts": [(2, 3, 4), (3, 1, 4)]},
            error="B is 2 in parts.0 but 3 in parts.1",
        )
    ],
)
