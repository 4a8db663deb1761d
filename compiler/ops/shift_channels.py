"""A learned summand for every channel."""

from __future__ import annotations

from typing import Any

from multiway.compiler.init import ZEROS
from multiway.compiler.op import Op, Reject, Sample


def shift_channels(x: Any, shift: Any) -> Any:
    return x + shift


OP = Op(
    signature="x[*,D], shift[D] -> y[*,D]",
    reference=shift_channels,
    doc="x plus one number a channel (a bias that no product adds).",
    params={"shift": ZEROS},
    flops=lambda n: n["*"] * n["D"],
    tokenwise=("x",),
    samples=[Sample(shapes={"x": (2, 3, 4), "shift": (4,)})],
    rejects=[
        Reject(shapes={"x": (2, 3), "shift": (4,)}, error="D is 3 in x but 4 in shift"),
    ],
)
