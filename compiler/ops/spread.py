"""A vector several times over: lanes that all start alike, or one copy for every expert."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def spread(x: Any, *, count: int) -> Any:
    return x.unsqueeze(-2).expand(*x.shape[:-1], count, x.shape[-1])


def formula(x: Any, *, count: int) -> Any:
    import numpy as np

    return np.stack([x] * count, axis=-2)


OP = Op(
    signature="x[*,D] -> copies[*,N,D]",
    reference=spread,
    formula=formula,
    doc="Every copy is x.",
    attrs={"count": Attr("number of copies", letter="N")},
    tokenwise=("x",),
    memory="view",
    samples=[
        Sample(shapes={"x": (2, 3, 4)}, attrs={"count": 3}),
        Sample(shapes={"x": (3, 4)}, attrs={"count": 1}),
    ],
    rejects=[Reject(shapes={"x": ()}, attrs={"count": 2}, error="x has 0 axes, needs [*,D]: []")],
    cite="arXiv:2409.19606",
)
