"""Layer normalisation."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def formula(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    import numpy as np

    centred = x - np.mean(x, -1, keepdims=True)
    y = centred / np.sqrt(np.var(x, -1, keepdims=True) + eps)
    y = y if weight is None else np.einsum("...d,d->...d", y, weight)
    return y if bias is None else np.add(y, bias)


OP = Op(
    signature="x[*,D], weight?[D], bias?[D] -> y[*,D]",
    reference=layer_norm,
    formula=formula,
    doc="(x - mean) / sqrt(variance + eps) over the last axis, times weight, plus bias.",
    attrs={"eps": Attr("added to the variance", 1e-5)},
    params={"weight": ONES, "bias": ZEROS},
    flops=lambda n: 8 * n["*"] * n["D"],
    tokenwise=("x",),
    saves=("x",),
    norm=True,
    samples=[
        Sample(shapes={"x": (2, 3, 4), "weight": (4,), "bias": (4,)}, attrs={"eps": 1e-5}),
        Sample(shapes={"x": (3, 4)}, attrs={"eps": 1e-6}),
    ],
    rejects=[Reject(shapes={"x": (2, 4), "weight": (5,)}, error="D is 4 in x but 5 in weight")],
    cite="arXiv:1607.06450",
)
