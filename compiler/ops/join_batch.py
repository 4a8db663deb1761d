"""Puts several batches through one pass."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def join_batch(parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=0)


def formula(parts: Any) -> Any:
    import numpy as np

    return np.array([row for part in parts for row in part])


OP = Op(
    signature="parts+[B+,*]:any -> y[B+,*]:any",
    reference=join_batch,
    formula=formula,
    doc="One after the other along the batch axis.",
    samples=[Sample(shapes={"parts": [(2, 3), (2, 3)]})],
    rejects=[
        Reject(shapes={"parts": [(2, 3), (2, 4)]}, error="* is [3] in parts.0 but [4] in parts.1")
    ],
)
