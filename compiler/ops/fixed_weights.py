"""Mixing weights that are not learned."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def fixed_weights(x: Any, *, ways: int, sources: int, value: float) -> Any:
    return x.new_full((ways, sources), value)


def formula(x: Any, *, ways: int, sources: int, value: float) -> Any:
    import numpy as np

    return np.array([[float(value)] * sources] * ways)


OP = Op(
    signature="x[B,T,D] -> weights[C,L]",
    reference=fixed_weights,
    formula=formula,
    doc="One number for every stream and source, in the type and on the device of x.",
    attrs={
        "ways": Attr("number of sums", letter="C"),
        "sources": Attr("number of sources", letter="L"),
        "value": Attr("of every weight"),
    },
    samples=[
        Sample(shapes={"x": (2, 3, 4)}, attrs={"ways": 2, "sources": 3, "value": 0.5}),
        Sample(shapes={"x": (1, 2, 3)}, attrs={"ways": 3, "sources": 1, "value": 2.0}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3)},
            attrs={"ways": 2, "sources": 3, "value": 0.5},
            error="x has 2 axes, needs [B,T,D]: [2,3]",
        )
    ],
)
