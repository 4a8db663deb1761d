"""Noise on what a router reads."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Sample


def jitter(x: Any, *, eps: float) -> Any:
    import torch

    if not torch.is_grad_enabled():
        return x
    # Laid out in order, so that the same numbers are drawn however x lies in memory.
    noise = torch.empty_like(x, memory_format=torch.contiguous_format)
    return x * noise.uniform_(1 - eps, 1 + eps)


def formula(x: Any, *, eps: float, uniform: Any = None) -> Any:
    if uniform is None:  # gradients are off
        return x
    return x * ((1 - uniform) * (1 - eps) + uniform * (1 + eps))


OP = Op(
    signature="x[*] -> y[*]",
    reference=jitter,
    formula=formula,
    doc=(
        "x times numbers drawn evenly from 1 - eps to 1 + eps while gradients are on, x itself "
        "while they are off."
    ),
    attrs={"eps": Attr("largest relative change")},
    flops=lambda n: n["*"],
    random=True,
    samples=[
        Sample(shapes={"x": (2, 3)}, attrs={"eps": 0.0}),
        Sample(shapes={"x": (2, 3)}, attrs={"eps": 0.02}),
    ],
    rejects=[],
    cite="arXiv:2101.03961",
)
