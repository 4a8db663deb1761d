"""The mean over the tokens of every sequence."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def mean_tokens(x: Any, padding: Any = None, *, skip: int) -> Any:
    if padding is None:
        return x[:, skip:].mean(1)
    kept = (~padding[:, skip:, None]).to(x.dtype)
    return (x[:, skip:] * kept).sum(1) / kept.sum(1).clamp(min=1)


def formula(x: Any, padding: Any = None, *, skip: int) -> Any:
    import numpy as np

    y = np.zeros((x.shape[0], x.shape[2]))
    for b in range(len(x)):
        there = [x[b, t] for t in range(skip, x.shape[1]) if padding is None or not padding[b, t]]
        y[b] = np.mean(there, 0) if there else 0
    return y


OP = Op(
    signature="x[B,T,D], padding?[B,T]:bool -> y[B,D]",
    reference=mean_tokens,
    formula=formula,
    doc="Padded tokens and the first `skip` are left out.",
    attrs={"skip": Attr("leading tokens that do not count", 0)},
    flops=lambda n: n["B"] * n["T"] * n["D"],
    samples=[
        Sample(shapes={"x": (2, 3, 4)}, attrs={"skip": 1}),
        Sample(
            shapes={"x": (3, 4, 2), "padding": (3, 4)},
            attrs={"skip": 1},
            values={
                "padding": [
                    [False, False, False, True],
                    [False, True, True, True],
                    [True, False, False, False],
                ]
            },
        ),
        Sample(shapes={"x": (2, 3, 4), "padding": (2, 3)}, attrs={"skip": 0}),
    ],
    rejects=[Reject(shapes={"x": (2, 3)}, error="x has 2 axes, needs [B,T,D]: [2,3]")],
)
