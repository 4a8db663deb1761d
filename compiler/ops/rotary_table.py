"""Cosines and sines for rotary positions."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def rotary_table(x: Any, positions: Any, *, channels: int, base: float) -> Any:
    import torch

    dtype = torch.promote_types(x.dtype, torch.float32)
    exponents = torch.arange(0, channels, 2, dtype=dtype, device=positions.device) / channels
    angles = positions.to(dtype)[..., None] * base**-exponents
    return angles.cos(), angles.sin()


def formula(x: Any, positions: Any, *, channels: int, base: float) -> Any:
    import numpy as np

    frequencies = [base ** (-2 * j / channels) for j in range(channels // 2)]
    turns = np.exp(1j * np.einsum("pt,r->ptr", positions, np.array(frequencies)))
    return turns.real, turns.imag


def _half(letters: dict[str, Any]) -> dict[str, Any]:
    return {"R": letters["N"] // 2}


OP = Op(
    signature="x[B,T,D], positions[P,T]:int -> cos[P,T,R], sin[P,T,R]",
    reference=rotary_table,
    formula=formula,
    doc="Angles position * base^(-2j / channels) for j < channels / 2, in at least float32.",
    attrs={
        "channels": Attr("channels of a head that turn, R = channels / 2", letter="N"),
        "base": Attr("base of the frequencies", 10000.0),
    },
    derive=_half,
    samples=[
        Sample(
            shapes={"x": (2, 3, 8), "positions": (1, 3)}, attrs={"channels": 4, "base": 10000.0}
        ),
        Sample(shapes={"x": (2, 3, 8), "positions": (2, 3)}, attrs={"channels": 6, "base": 100.0}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 8), "positions": (1, 4)},
            attrs={"channels": 4, "base": 1e4},
            error="T is 3 in x but 4 in positions",
        )
    ],
    cite="arXiv:2104.09864",
)
