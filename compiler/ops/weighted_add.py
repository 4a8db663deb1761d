"""The sum of two tensors, the first of them times a fixed number."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def weighted_add(a: Any, b: Any, *, factor: float) -> Any:
    return factor * a + b


def formula(a: Any, b: Any, *, factor: float) -> Any:
    import numpy as np

    return np.tensordot(np.array([factor, 1]), np.array([a, b]), 1)


OP = Op(
    signature="a[*], b[*] -> y[*]",
    reference=weighted_add,
    formula=formula,
    doc="factor * a + b: what is kept of the residual stream in DeepNorm.",
    attrs={"factor": Attr("of a")},
    flops=lambda n: 2 * n["*"],
    tokenwise=("a", "b"),
    samples=[
        Sample(shapes={"a": (2, 3), "b": (2, 3)}, attrs={"factor": 1.5}),
        Sample(shapes={"a": (2, 3), "b": (2, 3)}, attrs={"factor": 0.5}),
    ],
    rejects=[
        Reject(
            shapes={"a": (2, 3), "b": (2, 4)},
            attrs={"factor": 1.5},
            error="* is [2,3] in a but [2,4] in b",
        )
    ],
    cite="arXiv:2203.00555",
)
