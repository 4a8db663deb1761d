"""Gates of experts that are full: what is beyond their capacity is dropped."""

from __future__ import annotations

import math
from typing import Any

from multiway.compiler.graph.op import Attr, Letters, Op, Reject, Sample


def limit_experts(
    gates: Any, padding: Any = None, *, k: int, factor: float, slots: int, over: str
) -> Any:
    import torch

    experts = gates.shape[-1]
    there = torch.ones_like(gates[..., 0], dtype=torch.bool) if padding is None else ~padding
    rows, there = (
        (gates, there) if over == "row" else (gates.flatten(0, 1)[None], there.view(1, -1))
    )
    # First choices are served before second ones, and of one rank the earlier token.
    order = rows.argsort(dim=-1, descending=True, stable=True)[..., :k]
    asked = torch.zeros_like(rows, dtype=torch.bool).unsqueeze(1)
    asked = asked.expand(-1, k, -1, -1).scatter(-1, order.movedim(-1, 1).unsqueeze(-1), True)
    asked = asked & (rows != 0).unsqueeze(1) & there[:, None, :, None]
    place = asked.flatten(1, 2).cumsum(1).view_as(asked)  # from 1
    tokens = there.sum(-1)[:, None, None, None]
    room = place <= slots if slots else (place - 1) * experts < factor * k * tokens
    kept = (asked & room).any(1)
    return (rows * kept).view_as(gates)


def formula(
    gates: Any, padding: Any = None, *, k: int, factor: float, slots: int, over: str
) -> Any:
    import numpy as np

    batch, length, experts = gates.shape
    limited, rows = np.zeros(gates.shape), [[(b, t) for b in range(batch) for t in range(length)]]
    if over == "row":
        rows = [[(b, t) for t in range(length)] for b in range(batch)]
    for row in rows:
        there = [at for at in row if padding is None or not padding[at]]
        places = slots or math.ceil(factor * k * len(there) / experts)
        free = [places] * experts
        for choice in range(k):
            for at in there:
                i = np.argsort(-gates[at], kind="stable")[choice]
                if gates[at][i] != 0 and free[i]:
                    free[i] -= 1
                    limited[at][i] = gates[at][i]
    return limited


def _flops(n: Letters) -> float:
    return 8 * n["B"] * n["T"] * n["X"]


def _attrs(k: int, over: str, factor: float = 0.0, slots: int = 0) -> dict[str, Any]:
    return {"k": k, "factor": factor, "slots": slots, "over": over}


OP = Op(
    signature="gates[B,T,X], padding?[B,T]:bool -> limited[B,T,X]",
    reference=limit_experts,
    formula=formula,
    doc=(
        "An expert serves at most `slots` tokens, or factor * k * tokens / experts rounded up, of "
        "a row or of the whole batch. First choices come before second ones, earlier tokens before "
        "later ones; the gates of what finds no place become 0. Padded tokens are not served and "
        "do not count."
    ),
    attrs={
        "k": Attr("experts of a token before any is dropped"),
        "factor": Attr("places of an expert over those that it needs if all get as many", 0.0),
        "slots": Attr("places of an expert; 0: by factor", 0),
        "over": Attr("row or batch: whose tokens compete", "row"),
    },
    flops=_flops,
    saves=("gates",),
    samples=[
        Sample(shapes={"gates": (2, 4, 3)}, attrs=_attrs(1, "row", slots=1)),
        Sample(shapes={"gates": (2, 4, 3)}, attrs=_attrs(2, "batch", factor=0.5)),
        Sample(shapes={"gates": (2, 4, 3), "padding": (2, 4)}, attrs=_attrs(2, "row", factor=1.0)),
        Sample(  # of equal gates the first, none of 0, and as many places as tokens
            shapes={"gates": (2, 3, 3)},
            attrs=_attrs(2, "row", factor=0.5),
            values={
                "gates": [
                    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.0], [0.5, 0.25, 0.25]],
                    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]],
                ]
            },
        ),
        Sample(shapes={"gates": (3, 4, 2)}, attrs=_attrs(1, "batch", slots=2)),
    ],
    rejects=[
        Reject(
            shapes={"gates": (2, 4, 3), "padding": (2, 3)},
            attrs=_attrs(1, "row", slots=1),
            error="T is 4 in gates but 3 in padding",
        )
    ],
    cite="arXiv:2006.16668, arXiv:2101.03961",
)
