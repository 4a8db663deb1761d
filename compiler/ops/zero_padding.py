"""Sets padded tokens to zero."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def zero_padding(x: Any, padding: Any) -> Any:
    return x.masked_fill(padding[..., None], 0.0)


def formula(x: Any, padding: Any) -> Any:
    y = x.copy()
    y[padding] = 0
    return y


OP = Op(
    signature="x[B,T,D], padding[B,T]:bool -> y[B,T,D]",
    reference=zero_padding,
    formula=formula,
    doc="0 where `padding`, else x.",
    samples=[Sample(shapes={"x": (2, 3, 4), "padding": (2, 3)})],
    rejects=[
        Reject(shapes={"x": (2, 3, 4), "padding": (3, 3)}, error="B is 2 in x but 3 in padding")
    ],
)
