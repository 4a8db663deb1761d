"""Root mean square normalisation."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def rms_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    x_wide = wide(x)
    y = (x_wide * (x_wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def formula(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    import numpy as np

    squares = np.einsum("...d,...d->...", x, x)[..., None]
    y = x / np.sqrt(squares / x.shape[-1] + eps)
    y = y if weight is None else np.einsum("...d,d->...d", y, weight)
    return y if bias is None else np.add(y, bias)


OP = Op(
    signature="x[*,D], weight?[D], bias?[D] -> y[*,D]",
    reference=rms_norm,
    formula=formula,
    doc="x / sqrt(mean of squares + eps) in at least float32, cast back, then times weight.",
    attrs={"eps": Attr("added to the mean of squares", 1e-6)},
    params={"weight": ONES, "bias": ZEROS},
    flops=lambda n: 5 * n["*"] * n["D"],
    tokenwise=("x",),
    saves=("x",),
    norm=True,
    samples=[
        Sample(shapes={"x": (2, 3, 4), "weight": (4,)}, attrs={"eps": 1e-6}),
        Sample(shapes={"x": (3, 4)}, attrs={"eps": 1e-5}),
        Sample(shapes={"x": (3, 4), "weight": (4,), "bias": (4,)}, attrs={"eps": 1e-2}),
    ],
    rejects=[Reject(shapes={"x": (2, 4), "weight": (5,)}, error="D is 4 in x but 5 in weight")],
    cite="arXiv:1910.07467",
)
