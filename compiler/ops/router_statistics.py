"""What a router did, row by row: the numbers that losses and reports are made of."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Letters, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def router_statistics(
    gates: Any, logits: Any = None, wanted: Any = None, padding: Any = None, *, score: str
) -> Any:
    import torch

    there = torch.ones_like(gates[..., 0], dtype=torch.bool) if padding is None else ~padding
    there = wide(there.unsqueeze(-1).to(gates.dtype))
    served = ((gates != 0) * there).sum(1)
    load = served if wanted is None else ((wanted != 0) * there).sum(1)
    dropped = (load - served).sum(-1)
    if logits is None:
        return load, torch.zeros_like(load), dropped * 0, dropped * 0, dropped, there.sum((1, 2))
    z = wide(logits)
    p = z.softmax(-1)
    if score == "sigmoid":
        p = z.sigmoid()
        p = p / p.sum(-1, keepdim=True)
    entropy = torch.special.entr(p).sum(-1)
    squared = z.logsumexp(-1).square()
    there = there.squeeze(-1)
    return (
        load,
        (p * there.unsqueeze(-1)).sum(1),
        (squared * there).sum(1),
        (entropy * there).sum(1),
        dropped,
        there.sum(1),
    )


def formula(
    gates: Any, logits: Any = None, wanted: Any = None, padding: Any = None, *, score: str
) -> Any:
    import numpy as np

    batch, _, experts = gates.shape
    load, probability = np.zeros((batch, experts)), np.zeros((batch, experts))
    z, entropy, dropped, tokens = np.zeros((4, batch))
    for b, t in np.ndindex(gates.shape[:2]):
        if padding is not None and padding[b, t]:
            continue
        served, chosen = gates[b, t] != 0, (gates if wanted is None else wanted)[b, t] != 0
        load[b] += chosen
        dropped[b] += chosen.sum() - served.sum()
        tokens[b] += 1
        if logits is not None:
            e = np.exp(logits[b, t])
            worth = e / (1 + e) if score == "sigmoid" else e
            p = worth / worth.sum()
            probability[b] += p
            z[b] += np.log(e.sum()) ** 2
            entropy[b] -= p @ np.log(p)
    return load, probability, z, entropy, dropped, tokens


def _flops(n: Letters) -> float:
    return 10 * n["B"] * n["T"] * n["X"]


OP = Op(
    signature=(
        "gates[B,T,X], logits?[B,T,X], wanted?[B,T,X], padding?[B,T]:bool "
        "-> load[B,X], probability[B,X], z[B], entropy[B], dropped[B], tokens[B]"
    ),
    reference=router_statistics,
    formula=formula,
    doc=(
        "Sums over the tokens of a row that are not padded: how many chose each expert (`wanted`, "
        "or `gates` where nothing is dropped); the probability of each (softmax of logits, or "
        "sigmoids over their sum); the square of log sum exp of logits; the entropy of the "
        "probabilities in nats; how many of the choices in `wanted` are not in `gates`; and how "
        "many tokens there are. In at least float32. Of what has no logits, 0."
    ),
    attrs={"score": Attr("softmax or sigmoid", "softmax")},
    flops=_flops,
    saves=("logits",),
    samples=[
        Sample(
            shapes={
                "gates": (2, 3, 4),
                "logits": (2, 3, 4),
                "wanted": (2, 3, 4),
                "padding": (2, 3),
            },
            attrs={"score": "softmax"},
        ),
        Sample(shapes={"gates": (2, 3, 4), "logits": (2, 3, 4)}, attrs={"score": "sigmoid"}),
        Sample(shapes={"gates": (2, 3, 4)}, attrs={"score": "softmax"}),
        Sample(
            shapes={"gates": (2, 3, 2), "logits": (2, 3, 2), "wanted": (2, 3, 2)},
            attrs={"score": "sigmoid"},
            values={
                "gates": [[[0, 1], [0, 0], [0.5, 0.5]], [[1, 0], [0, -1], [0, 0]]],
                "wanted": [[[0, 1], [0, 1], [0.5, 0.5]], [[1, 0], [-1, -1], [1, 0]]],
            },
        ),
        Sample(
            shapes={"gates": (2, 3, 2), "wanted": (2, 3, 2), "padding": (2, 3)},
            attrs={"score": "softmax"},
            values={"gates": [[[0, 1], [0, 0], [2, 2]], [[1, 0], [0, 1], [0, 0]]]},
        ),
    ],
    rejects=[
        Reject(
            shapes={"gates": (2, 3, 4), "logits": (2, 3, 5)},
            error="X is 4 in gates but 5 in logits",
        )
    ],
    cite="arXiv:2101.03961, arXiv:2202.08906",
)
