"""Lays out a projection as heads."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Attr, Op, Reject, Sample


def split_heads(x: Any, *, heads: int) -> Any:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


OP = Op(
    signature="x[B,T,H*E] -> y[B,H,T,E]",
    reference=split_heads,
    doc="Head h owns the channels h*E .. (h+1)*E - 1.",
    attrs={"heads": Attr("number of heads", letter="H")},
    memory="view",
    samples=[Sample(shapes={"x": (2, 3, 8)}, attrs={"heads": 2})],
    rejects=[
        Reject(shapes={"x": (2, 3, 8)}, attrs={"heads": 3}, error="x: 8 is not a multiple of H = 3")
    ],
)
