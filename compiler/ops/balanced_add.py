"""The sum of two tensors with weights that share a total."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def balanced_add(a: Any, b: Any, balance: Any) -> Any:
    weights = (2 * wide(balance).softmax(-1)).to(a.dtype)
    return weights[0] * a + weights[1] * b


def formula(a: Any, b: Any, balance: Any) -> Any:
    import numpy as np

    e = np.exp(balance)
    return 2 * (e[0] * a + e[1] * b) / (e[0] + e[1])


OP = Op(
    signature="a[*], b[*], balance[2] -> y[*]",
    reference=balanced_add,
    formula=formula,
    doc="w0 * a + w1 * b, with w = 2 softmax(balance): both are 1 where balance is 0 (LAuReL-RW).",
    params={"balance": ZEROS},
    flops=lambda n: 3 * n["*"],
    tokenwise=("a", "b"),
    saves=("a", "b"),
    samples=[Sample(shapes={"a": (2, 3), "b": (2, 3), "balance": (2,)})],
    rejects=[
        Reject(
            shapes={"a": (2, 3), "b": (2, 4), "balance": (2,)},
            error="* is [2,3] in a but [2,4] in b",
        )
    ],
    cite="arXiv:2411.07501",
)
