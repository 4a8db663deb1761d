"""The sum of two tensors of one shape."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def add(a: Any, b: Any) -> Any:
    return a + b


def formula(a: Any, b: Any) -> Any:
    import numpy as np

    return np.sum([a, b], axis=0)


OP = Op(
    signature="a[*], b[*] -> y[*]",
    reference=add,
    formula=formula,
    doc="a + b.",
    flops=lambda n: n["*"],
    tokenwise=("a", "b"),
    samples=[Sample(shapes={"a": (2, 3), "b": (2, 3)})],
    rejects=[Reject(shapes={"a": (2, 3), "b": (2, 4)}, error="* is [2,3] in a but [2,4] in b")],
)
