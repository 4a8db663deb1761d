"""Looks up a row of a table for every token id."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL
from multiway.compiler.graph.op import Op, Reject, Sample


def embedding(tokens: Any, weight: Any) -> Any:
    return weight[tokens]


def formula(tokens: Any, weight: Any) -> Any:
    import numpy as np

    return np.eye(len(weight))[tokens] @ weight


OP = Op(
    signature="tokens[*]:int, weight[V,D] -> y[*,D]",
    reference=embedding,
    formula=formula,
    doc="Row `tokens` of the table, no factor.",
    params={"weight": NORMAL},
    samples=[Sample(shapes={"tokens": (2, 3), "weight": (4, 5)})],
    rejects=[
        Reject(
            shapes={"tokens": (2, 3), "weight": (4, 5, 6)},
            error="weight has 3 axes, needs [V,D]: [4,5,6]",
        )
    ],
)
