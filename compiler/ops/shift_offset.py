"""The slot of the first text token behind a prefix."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def shift_offset(offset: Any, sizes: Any) -> Any:
    return offset + sum(sizes[:-1])


def formula(offset: Any, sizes: Any) -> Any:
    import numpy as np

    return np.array([sum(sizes[:-1], start) for start in offset])


OP = Op(
    signature="offset[B]:int, sizes[T+]:sizes -> offset[B]:int",
    reference=shift_offset,
    formula=formula,
    doc="offset plus the lengths of all segments but the last.",
    samples=[
        Sample(shapes={"offset": (2,), "sizes": (3, 2)}),
        Sample(shapes={"offset": (2,), "sizes": (1, 3, 2)}),
    ],
    rejects=[
        Reject(
            shapes={"offset": (2, 2), "sizes": (3, 2)}, error="offset has 2 axes, needs [B]: [2,2]"
        )
    ],
)
