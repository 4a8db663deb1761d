"""All dot products between two sets of vectors, times a learned temperature."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def similarity(a: Any, b: Any, scale: Any) -> Any:
    return scale.exp() * (a @ b.T)


def formula(a: Any, b: Any, scale: Any) -> Any:
    import numpy as np

    return np.array([[np.exp(scale[0]) * np.sum(p * q) for q in b] for p in a])


OP = Op(
    signature="a[A,D], b[B,D], scale[1] -> y[A,B]",
    reference=similarity,
    formula=formula,
    doc="exp(scale) a b'.",
    params={"scale": ZEROS},
    flops=lambda n: 2 * n["A"] * n["B"] * n["D"],
    samples=[Sample(shapes={"a": (2, 4), "b": (3, 4), "scale": (1,)})],
    rejects=[
        Reject(shapes={"a": (2, 4), "b": (3, 5), "scale": (1,)}, error="D is 4 in a but 5 in b")
    ],
    cite="arXiv:2103.00020",
)
