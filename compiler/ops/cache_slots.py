"""Where in the cache new tokens stand."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def cache_slots(offset: Any, positions: Any) -> Any:
    return offset[:, None] + positions


def formula(offset: Any, positions: Any) -> Any:
    import numpy as np

    return np.array([start + positions[b % len(positions)] for b, start in enumerate(offset)])


OP = Op(
    signature="offset[B]:int, positions[P,T]:int -> slots[B,T]:int",
    reference=cache_slots,
    formula=formula,
    doc="The slot of position 0 of a row, plus the position.",
    samples=[
        Sample(shapes={"offset": (2,), "positions": (2, 3)}),
        Sample(shapes={"offset": (3,), "positions": (1, 2)}),
    ],
    rejects=[
        Reject(
            shapes={"offset": (2, 1), "positions": (2, 3)},
            error="offset has 2 axes, needs [B]: [2,1]",
        )
    ],
)
