"""Turns pairs of channels by an angle that grows with the position."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def rotary(x: Any, cos: Any, sin: Any, *, pairs: str) -> Any:
    import torch

    cos, sin = cos[:, None], sin[:, None]
    turned, rest = x[..., : 2 * cos.shape[-1]].to(cos.dtype), x[..., 2 * cos.shape[-1] :]
    if pairs == "half":
        a, b = turned.chunk(2, dim=-1)
        y = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([y.to(x.dtype), rest], dim=-1)


def formula(x: Any, cos: Any, sin: Any, *, pairs: str) -> Any:
    y, turning = x.copy(), cos.shape[-1]
    for j in range(turning):  # a pair is a complex number
        a, b = (j, j + turning) if pairs == "half" else (2 * j, 2 * j + 1)
        turned = (x[..., a] + 1j * x[..., b]) * (cos[..., j] + 1j * sin[..., j])[:, None]
        y[..., a], y[..., b] = turned.real, turned.imag
    return y


OP = Op(
    signature="x[B,H,T,E], cos[P,T,R], sin[P,T,R] -> y[B,H,T,E]",
    reference=rotary,
    formula=formula,
    doc="The leading 2R channels turn in pairs, the rest pass.",
    attrs={"pairs": Attr("half: j with j + R; adjacent: 2j with 2j + 1", "half")},
    flops=lambda n: 6 * n["B"] * n["H"] * n["T"] * n["R"],
    samples=[
        Sample(
            shapes={"x": (2, 3, 4, 7), "cos": (p, 4, r), "sin": (p, 4, r)}, attrs={"pairs": pairs}
        )
        for pairs in ("half", "adjacent")
        for p, r in ((1, 2), (2, 3))
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 4, 6), "cos": (1, 5, 2), "sin": (1, 4, 2)},
            attrs={"pairs": "half"},
            error="T is 4 in x but 5 in cos",
        )
    ],
    cite="arXiv:2104.09864",
)
