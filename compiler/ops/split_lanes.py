"""The residual stream cut into pieces of its width, which are lanes from then on."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def split_lanes(x: Any, *, count: int) -> Any:
    return x.unflatten(-1, (count, -1))


def formula(x: Any, *, count: int) -> Any:
    import numpy as np

    width = x.shape[-1] // count
    return np.stack([x[..., i * width : (i + 1) * width] for i in range(count)], axis=2)


OP = Op(
    signature="x[B,T,N*D] -> lanes[B,T,N,D]",
    reference=split_lanes,
    formula=formula,
    doc="Lane i is the i-th of `count` contiguous pieces of the width.",
    attrs={"count": Attr("number of lanes", letter="N")},
    tokenwise=("x",),
    memory="view",
    samples=[
        Sample(shapes={"x": (2, 3, 8)}, attrs={"count": 2}),
        Sample(shapes={"x": (2, 3, 8)}, attrs={"count": 4}),
    ],
    rejects=[
        Reject(shapes={"x": (2, 3, 8)}, attrs={"count": 3}, error="x: 8 is not a multiple of N = 3")
    ],
    cite="arXiv:2503.14125",
)
