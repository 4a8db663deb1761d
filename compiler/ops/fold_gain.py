"""A norm's gain inside the weight of the linear behind it."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ONES
from multiway.compiler.graph.op import Op, Reject, Sample


def fold_gain(weight: Any, gain: Any) -> Any:
    return weight * gain


def formula(weight: Any, gain: Any) -> Any:
    import numpy as np

    return weight @ np.diag(gain)


OP = Op(
    signature="weight[F,D], gain[D] -> folded[F,D]",
    reference=fold_gain,
    formula=formula,
    doc="linear(gain * x, weight) is linear(x, folded).",
    params={"weight": NORMAL, "gain": ONES},
    flops=lambda n: n["F"] * n["D"],
    once=True,
    samples=[Sample(shapes={"weight": (3, 4), "gain": (4,)})],
    rejects=[
        Reject(shapes={"weight": (3, 4), "gain": (3,)}, error="D is 4 in weight but 3 in gain")
    ],
)
