"""Lays out a projection as heads."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def split_heads(x: Any, *, heads: int) -> Any:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def formula(x: Any, *, heads: int) -> Any:
    import numpy as np

    width = x.shape[-1] // heads
    return np.stack([x[..., h * width : (h + 1) * width] for h in range(heads)], axis=1)


OP = Op(
    signature="x[B,T,H*E] -> y[B,H,T,E]",
    reference=split_heads,
    formula=formula,
    doc="Head h owns the channels h*E .. (h+1)*E - 1.",
    attrs={"heads": Attr("number of heads", letter="H")},
    memory="view",
    samples=[
        Sample(shapes={"x": (2, 3, 8)}, attrs={"heads": 2}),
        Sample(shapes={"x": (2, 3, 8)}, attrs={"heads": 4}),
    ],
    rejects=[
        Reject(shapes={"x": (2, 3, 8)}, attrs={"heads": 3}, error="x: 8 is not a multiple of H = 3")
    ],
)
