"""An op of one's own, as docs/your_own_files.md shows it."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Sample


def mish(x: Any) -> Any:
    import torch

    return x * torch.nn.functional.softplus(x).tanh()


def formula(x: Any) -> Any:
    import numpy as np

    exp = np.exp(x)
    return x * (exp * exp + 2 * exp) / (exp * exp + 2 * exp + 2)


OP = Op(
    signature="x[*] -> y[*]",
    reference=mish,
    formula=formula,
    doc="x tanh(ln(1 + e^x)).",
    flops=lambda n: 8 * n["*"],
    tokenwise=("x",),
    saves=("x",),
    elementwise=True,
    samples=[Sample(shapes={"x": (2, 3)})],
    cite="arXiv:1908.08681",
)
