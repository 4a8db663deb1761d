"""Some values as a list."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def collect(parts: Any, *, count: int) -> Any:
    assert len(parts) == count
    return list(parts)


def formula(parts: Any, *, count: int) -> Any:
    import numpy as np

    return [np.copy(parts[i]) for i in range(count)]


OP = Op(
    signature="parts+[*] -> history[L,*]:list",
    reference=collect,
    formula=formula,
    doc="A list of sources that are named one by one.",
    attrs={"count": Attr("how many", letter="L")},
    tokenwise=("parts",),
    memory="list",
    samples=[
        Sample(shapes={"parts": [(2, 3), (2, 3)]}, attrs={"count": 2}),
        Sample(shapes={"parts": [(2, 3)]}, attrs={"count": 1}),
    ],
    rejects=[
        Reject(
            shapes={"parts": [(2, 3), (2, 4)]},
            attrs={"count": 2},
            error="* is [2,3] in parts.0 but [2,4] in parts.1",
        )
    ],
)
