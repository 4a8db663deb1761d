"""Puts one learned token in front of a sequence."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def prepend_token(x: Any, token: Any) -> Any:
    import torch

    return torch.cat([token.expand(x.shape[0], 1, x.shape[2]), x], dim=1)


def formula(x: Any, token: Any) -> Any:
    import numpy as np

    return np.array([np.vstack([token[0], row]) for row in x])


OP = Op(
    signature="x[B,N,D], token[1,1,D] -> y[B,N+1,D]",
    reference=prepend_token,
    formula=formula,
    doc="The cls token.",
    params={"token": ZEROS},
    samples=[Sample(shapes={"x": (2, 3, 4), "token": (1, 1, 4)})],
    rejects=[
        Reject(shapes={"x": (2, 3, 4), "token": (1, 1, 5)}, error="D is 4 in x but 5 in token")
    ],
    cite="arXiv:2010.11929",
)
