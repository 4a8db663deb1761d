"""Two mixing weights that sum to 1."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import Init
from multiway.compiler.graph.op import Op, Reject, Sample


def complement_weights(static: Any) -> Any:
    import torch

    return torch.stack([1 - static, static], -1)


def formula(static: Any) -> Any:
    import numpy as np

    return np.array([[1 - w, w] for w in static])


OP = Op(
    signature="static[C] -> weights[C,2]",
    reference=complement_weights,
    formula=formula,
    doc="(1 - w, w): what the first source gives up goes to the second.",
    params={"static": Init(kind="constant", value=0.5)},
    samples=[
        Sample(shapes={"static": (1,)}),
        Sample(shapes={"static": (3,)}),
    ],
    rejects=[
        Reject(shapes={"static": (2, 1)}, error="static has 2 axes, needs [C]: [2,1]"),
    ],
    cite="arXiv:2410.17897",
)
