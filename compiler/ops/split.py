"""Cuts a joined sequence into its segments."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def split(x: Any, sizes: Any) -> Any:
    import torch

    return torch.split(x, sizes, dim=1)


def formula(x: Any, sizes: Any) -> Any:
    import numpy as np

    ends = np.cumsum(sizes)
    return [x[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


OP = Op(
    signature="x[B,T+,D], sizes[T+]:sizes -> parts+[B,T+,D]",
    reference=split,
    formula=formula,
    doc="The inverse of concat.",
    memory="view",
    samples=[Sample(shapes={"x": (2, 4, 5), "sizes": (3, 1)})],
    rejects=[Reject(shapes={"x": (2, 5, 4), "sizes": (3, 1)}, error="T+ is 4 in sizes but 5 in x")],
)
