"""Scores of experts by the angle to a learned vector of each."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, Init
from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def cosine_scores(x: Any, weight: Any, temperature: Any) -> Any:
    import torch

    normalised = torch.nn.functional.normalize
    # Nothing is divided by less than this: a temperature that is learned may reach 0.
    scale = wide(temperature).clamp(min=0.01)
    found = normalised(wide(x), dim=-1) @ normalised(wide(weight), dim=-1).mT / scale
    return found.to(x.dtype)


def formula(x: Any, weight: Any, temperature: Any) -> Any:
    import numpy as np

    y = np.zeros((*x.shape[:-1], len(weight)))
    for at in np.ndindex(y.shape):
        a, b = x[at[:-1]], weight[at[-1]]
        y[at] = (a @ b) / (np.sqrt(a @ a) * np.sqrt(b @ b))
    return y / max(np.ravel(temperature)[0], 0.01)


OP = Op(
    signature="x[*,D], weight[X,D], temperature[1] -> logits[*,X]",
    reference=cosine_scores,
    formula=formula,
    doc="Cosine of x and the vector of every expert, over a temperature of at least 0.01.",
    params={"weight": NORMAL, "temperature": Init(kind="constant", value=0.3)},
    flops=lambda n: 2 * n["*"] * n["D"] * n["X"],
    tokenwise=("x",),
    saves=("x",),
    samples=[
        Sample(shapes={"x": (2, 3, 4), "weight": (5, 4), "temperature": (1,)}),
        Sample(
            shapes={"x": (3, 4), "weight": (2, 4), "temperature": (1,)},
            values={"temperature": 0.005},
        ),
        Sample(
            shapes={"x": (3, 4), "weight": (2, 4), "temperature": (1,)}, values={"temperature": 0.5}
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 4), "weight": (5, 3), "temperature": (1,)},
            error="D is 4 in x but 3 in weight",
        )
    ],
    cite="arXiv:2204.09179",
)
