"""Leaves out the first tokens of every sequence."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.types import add


def skip_tokens(x: Any, *, count: int) -> Any:
    return x[:, count:]


def formula(x: Any, *, count: int) -> Any:
    import numpy as np

    return np.delete(x, range(count), axis=1)


def _rest(letters: dict[str, Any]) -> dict[str, Any]:
    return {"U": add(letters["T"], -letters["K"])}


OP = Op(
    signature="x[B,T,D] -> y[B,U,D]",
    reference=skip_tokens,
    formula=formula,
    doc="All tokens but the first `count`; U = T - count.",
    attrs={"count": Attr("leading tokens to leave out", letter="K")},
    derive=_rest,
    samples=[
        Sample(shapes={"x": (2, 3, 4)}, attrs={"count": 1}),
        Sample(shapes={"x": (2, 4, 3)}, attrs={"count": 2}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3)},
            attrs={"count": 1},
            error="x has 2 axes, needs [B,T,D]: [2,3]",
        )
    ],
)
