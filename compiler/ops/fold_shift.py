"""A norm's bias inside the bias of the linear behind it."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def fold_shift(weight: Any, shift: Any, bias: Any = None) -> Any:
    folded = weight @ shift
    return folded if bias is None else folded + bias


def formula(weight: Any, shift: Any, bias: Any = None) -> Any:
    import numpy as np

    y = np.einsum("fd,d->f", weight, shift)
    return y if bias is None else np.add(y, bias)


OP = Op(
    signature="weight[F,D], shift[D], bias?[F] -> folded[F]",
    reference=fold_shift,
    formula=formula,
    doc="linear(x + shift, weight, bias) is linear(x, weight, folded).",
    params={"weight": NORMAL, "shift": ZEROS, "bias": ZEROS},
    flops=lambda n: 2 * n["F"] * n["D"],
    once=True,
    samples=[
        Sample(shapes={"weight": (3, 4), "shift": (4,), "bias": (3,)}),
        Sample(shapes={"weight": (3, 4), "shift": (4,)}),
    ],
    rejects=[
        Reject(shapes={"weight": (3, 4), "shift": (3,)}, error="D is 4 in weight but 3 in shift")
    ],
)
