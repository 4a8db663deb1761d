"""The loss by which routers learn to use all experts alike."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def balance_loss(loads: Any, probabilities: Any, tokens: Any, *, rows: str, layers: str) -> Any:
    import torch

    load, probability, count = (torch.stack(list(each)) for each in (loads, probabilities, tokens))
    count = count.unsqueeze(-1)
    for axis, how in ((1, rows), (0, layers)):
        if how == "together":
            load, probability, count = (
                each.sum(axis, keepdim=True) for each in (load, probability, count)
            )
    count = count.clamp(min=1)
    return load.shape[-1] * ((load / count) * (probability / count)).sum(-1).mean()


def formula(loads: Any, probabilities: Any, tokens: Any, *, rows: str, layers: str) -> Any:
    import numpy as np

    load, probability, count = np.array(loads), np.array(probabilities), np.array(tokens)

    def groups(size: int, how: str) -> list[list[int]]:
        return [list(range(size))] if how == "together" else [[i] for i in range(size)]

    found = []
    for over in groups(count.shape[0], layers):
        for of in groups(count.shape[1], rows):
            some = np.ix_(over, of)
            n = max(count[some].sum(), 1)
            f, p = load[some].sum((0, 1)) / n, probability[some].sum((0, 1)) / n
            found.append(load.shape[-1] * (f @ p))
    return np.mean(found)


OP = Op(
    signature="loads+[B,X], probabilities+[B,X], tokens+[B] -> loss[]",
    reference=balance_loss,
    formula=formula,
    doc=(
        "The number of experts times the sum over them of f p: the part of the tokens that go to "
        "an expert and its mean probability. Where all are used alike that is the number of "
        "experts of a token. f and p are those of each row and layer, of which the mean is taken, "
        "or of all rows, or of all layers together."
    ),
    attrs={
        "rows": Attr("apart or together", "together"),
        "layers": Attr("apart or together", "apart"),
    },
    flops=lambda n: 4 * n["B"] * n["X"],
    samples=[
        Sample(
            shapes={
                "loads": [(2, 3), (2, 3)],
                "probabilities": [(2, 3), (2, 3)],
                "tokens": [(2,), (2,)],
            },
            attrs={"rows": rows, "layers": layers},
            values={"tokens": [[3.0, 2.0], [0.8, 0.0]]},
        )
        for rows in ("apart", "together")
        for layers in ("apart", "together")
    ],
    rejects=[
        Reject(
            shapes={"loads": [(2, 3)], "probabilities": [(2, 4)], "tokens": [(2,)]},
            error="X is 3 in loads.0 but 4 in probabilities.0",
        )
    ],
    cite="arXiv:2101.03961",
)
