"""The residual stream as several lanes that all start alike."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Attr, Op, Reject, Sample


def open_lanes(x: Any, *, count: int) -> Any:
    return x.unsqueeze(-2).expand(*x.shape[:-1], count, x.shape[-1])


OP = Op(
    signature="x[B,T,D] -> lanes[B,T,N,D]",
    reference=open_lanes,
    doc="Every lane is x.",
    attrs={"count": Attr("number of lanes", letter="N")},
    tokenwise=("x",),
    samples=[
        Sample(shapes={"x": (2, 3, 4)}, attrs={"count": 3}),
        Sample(shapes={"x": (2, 3, 4)}, attrs={"count": 1}),
    ],
    rejects=[
        Reject(shapes={"x": (3, 4)}, attrs={"count": 2}, error="x has 2 axes, needs [B,T,D]: [3,4]")
    ],
    cite="arXiv:2409.19606",
)
