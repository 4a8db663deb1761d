"""Gates of a router in which every expert chooses its tokens."""

from __future__ import annotations

import math
from typing import Any

from multiway.compiler.graph.op import Attr, Letters, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def expert_choice_gates(logits: Any, padding: Any = None, *, factor: float, over: str) -> Any:
    import torch

    experts = logits.shape[-1]
    scores = wide(logits).softmax(-1)
    there = torch.ones_like(scores[..., 0], dtype=torch.bool) if padding is None else ~padding
    rows, there = (
        (scores, there) if over == "row" else (scores.flatten(0, 1)[None], there.view(1, -1))
    )
    ranked = rows.masked_fill(~there.unsqueeze(-1), -1.0)
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(1)
    tokens = there.sum(-1)[:, None, None]
    chosen = (rank * experts < factor * tokens) & there.unsqueeze(-1)
    return (rows * chosen).view_as(logits).to(logits.dtype)


def formula(logits: Any, padding: Any = None, *, factor: float, over: str) -> Any:
    import numpy as np

    batch, length, experts = logits.shape
    e = np.exp(logits)
    scores, gates = e / e.sum(-1, keepdims=True), np.zeros(logits.shape)
    rows = [[(b, t) for b in range(batch) for t in range(length)]]
    if over == "row":
        rows = [[(b, t) for t in range(length)] for b in range(batch)]
    for row in rows:
        there = [at for at in row if padding is None or not padding[at]]
        for i in range(experts):
            best = sorted(there, key=lambda at: -scores[at][i])  # of equal ones the earlier
            for at in best[: math.ceil(factor * len(there) / experts)]:
                gates[at][i] = scores[at][i]
    return gates


def _flops(n: Letters) -> float:
    return 8 * n["B"] * n["T"] * n["X"]


OP = Op(
    signature="logits[B,T,X], padding?[B,T]:bool -> gates[B,T,X]",
    reference=expert_choice_gates,
    formula=formula,
    doc=(
        "Every expert takes the factor * tokens / experts tokens, rounded up, that score highest "
        "with it, of a row or of the whole batch; of equal ones the earlier. A gate is the softmax "
        "over experts, 0 where an expert did not take the token. Padded tokens are never taken and "
        "do not count. In at least float32, cast back."
    ),
    attrs={
        "factor": Attr("experts of a token on average"),
        "over": Attr("row or batch: which tokens an expert chooses from", "row"),
    },
    flops=_flops,
    saves=("logits",),
    samples=[
        Sample(shapes={"logits": (2, 4, 3)}, attrs={"factor": 1.5, "over": "row"}),
        Sample(
            shapes={"logits": (2, 4, 3), "padding": (2, 4)}, attrs={"factor": 1.0, "over": "batch"}
        ),
        Sample(  # of equal scores the earlier, and no more tokens than there are
            shapes={"logits": (2, 4, 2)},
            attrs={"factor": 1.0, "over": "row"},
            values={"logits": [[[1, 0], [1, 0], [0, 2], [1, 0]], [[0, 1], [0, 1], [0, 1], [0, 1]]]},
        ),
        Sample(
            shapes={"logits": (2, 4, 3), "padding": (2, 4)}, attrs={"factor": 4.0, "over": "row"}
        ),
    ],
    rejects=[
        Reject(
            shapes={"logits": (4, 3)},
            attrs={"factor": 1.0},
            error="logits has 2 axes, needs [B,T,X]: [4,3]",
        )
    ],
    cite="arXiv:2202.09368",
)
