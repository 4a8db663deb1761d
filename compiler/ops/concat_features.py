"""Lays vectors end to end."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def concat_features(parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=-1)


def formula(parts: Any) -> Any:
    import numpy as np

    return np.vstack([part.T for part in parts]).T


OP = Op(
    signature="parts+[*,D+] -> y[*,D+]",
    reference=concat_features,
    formula=formula,
    doc="One after the other along the last axis.",
    samples=[
        Sample(shapes={"parts": [(2, 3), (2, 4)]}),
        Sample(shapes={"parts": [(2, 2, 3), (2, 2, 1), (2, 2, 2)]}),
    ],
    rejects=[
        Reject(shapes={"parts": [(2, 3), (3, 4)]}, error="* is [2] in parts.0 but [3] in parts.1")
    ],
)
