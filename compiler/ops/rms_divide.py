"""Division by the root mean square, the eps beside the root."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def rms_divide(x: Any, weight: Any = None, *, eps: float) -> Any:
    x_wide = wide(x)
    y = (x_wide / (x_wide.square().mean(-1, keepdim=True).sqrt() + eps)).to(x.dtype)
    return y if weight is None else y * weight


def formula(x: Any, weight: Any = None, *, eps: float) -> Any:
    import numpy as np

    root = np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
    y = x / (root + eps)
    return y if weight is None else np.einsum("...d,d->...d", y, weight)


OP = Op(
    signature="x[*,D], weight?[D] -> y[*,D]",
    reference=rms_divide,
    formula=formula,
    doc="x / (sqrt(mean of squares) + eps) in at least float32, cast back, then times weight.",
    attrs={"eps": Attr("added to the root", 1e-6)},
    params={"weight": ONES},
    flops=lambda n: 5 * n["*"] * n["D"],
    tokenwise=("x",),
    saves=("x",),
    samples=[
        Sample(shapes={"x": (2, 3, 4), "weight": (4,)}, attrs={"eps": 1e-6}),
        Sample(shapes={"x": (3, 4)}, attrs={"eps": 1e-2}),
    ],
    rejects=[Reject(shapes={"x": (2, 4), "weight": (5,)}, error="D is 4 in x but 5 in weight")],
    cite="arXiv:2512.24880",
)
