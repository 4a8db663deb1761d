"""Weights of lanes between 0 and a factor."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS, Init
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def lane_gate(z: Any, scale: Any, bias: Any, *, factor: float, eps: float) -> Any:
    gate = factor * (wide(scale) * wide(z) + wide(bias)).sigmoid() + eps
    return gate.unsqueeze(-1).to(z.dtype)


def formula(z: Any, scale: Any, bias: Any, *, factor: float, eps: float) -> Any:
    import numpy as np

    return (factor / (1 + np.exp(-scale * z - bias)) + eps)[..., None]


OP = Op(
    signature="z[*,N], scale[1], bias[N] -> weights[*,N,1]",
    reference=lane_gate,
    formula=formula,
    doc="factor * sigmoid(scale z + bias) + eps in at least float32, cast back.",
    attrs={
        "factor": Attr("the largest weight", 1.0),
        "eps": Attr("added to the weights", 0.0),
    },
    params={"scale": Init(kind="constant", value=0.01), "bias": ZEROS},
    flops=lambda n: 8 * n["*"] * n["N"],
    tokenwise=("z",),
    saves=("z",),
    samples=[
        Sample(
            shapes={"z": (2, 3, 4), "scale": (1,), "bias": (4,)}, attrs={"factor": 1.0, "eps": 1e-6}
        ),
        Sample(
            shapes={"z": (3, 2), "scale": (1,), "bias": (2,)}, attrs={"factor": 2.0, "eps": 0.0}
        ),
    ],
    rejects=[
        Reject(
            shapes={"z": (2, 3, 4), "scale": (1,), "bias": (5,)}, error="N is 4 in z but 5 in bias"
        ),
        Reject(
            shapes={"z": (2, 3, 4), "scale": (), "bias": (4,)},
            error="scale has 0 axes, needs [1]: []",
        ),
    ],
    cite="arXiv:2512.24880",
)
