"""Lays all heads end to end."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def merge_heads(x: Any) -> Any:
    return x.transpose(1, 2).flatten(2)


def formula(x: Any) -> Any:
    import numpy as np

    return np.concatenate([x[:, h] for h in range(x.shape[1])], axis=-1)


OP = Op(
    signature="x[B,H,T,E] -> y[B,T,H*E]",
    reference=merge_heads,
    formula=formula,
    doc="The inverse of split_heads.",
    tokenwise=("x",),
    memory="view",
    samples=[Sample(shapes={"x": (2, 3, 4, 5)})],
    rejects=[Reject(shapes={"x": (2, 3, 4)}, error="x has 3 axes, needs [B,H,T,E]: [2,3,4]")],
)
