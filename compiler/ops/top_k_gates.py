"""Gates of a router that gives every token its k best experts."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS
from multiway.compiler.graph.op import Attr, Letters, Op, Reject, Sample
from multiway.compiler.graph.precision import wide

TINY = 1e-20  # beside the sum of gates; no float32 sum of use is as small


def top_k_gates(
    logits: Any,
    bias: Any = None,
    *,
    k: int,
    score: str,
    normalise: bool,
    scale: float,
    groups: int,
    kept: int,
    group_by: str,
) -> Any:
    import torch

    z = wide(logits)
    scores = z.softmax(-1) if score == "softmax" else z.sigmoid()
    ranked = scores if bias is None else scores + wide(bias)

    def best(of: Any, count: int) -> Any:
        # Sorted, because what topk takes of equal scores differs from device to device.
        order = of.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        return torch.zeros_like(of, dtype=torch.bool).scatter(-1, order, True)

    if groups > 1:
        each = ranked.unflatten(-1, (groups, -1))
        worth = each.amax(-1) if group_by == "max" else each.topk(2).values.sum(-1)
        ranked = each.masked_fill(~best(worth, kept).unsqueeze(-1), -torch.inf).flatten(-2)
    gates = scores * best(ranked, k)
    if normalise:
        gates = gates / (gates.sum(-1, keepdim=True) + TINY)
    return (scale * gates).to(logits.dtype)


def formula(
    logits: Any,
    bias: Any = None,
    *,
    k: int,
    score: str,
    normalise: bool,
    scale: float,
    groups: int,
    kept: int,
    group_by: str,
) -> Any:
    import numpy as np

    gates = np.zeros(logits.shape)
    for at in np.ndindex(logits.shape[:-1]):
        e = np.exp(logits[at])
        scores = e / e.sum() if score == "softmax" else e / (1 + e)
        ranked = scores if bias is None else scores + bias
        members = np.split(np.arange(len(e)), groups)
        counted = 1 if group_by == "max" else 2  # scores that say what a group is worth
        worth = [sum(sorted(ranked[group])[-counted:]) for group in members]
        best = sorted(range(groups), key=lambda i: -worth[i])[: kept if groups > 1 else 1]
        open_to = [i for g in sorted(best) for i in members[g]]
        chosen = sorted(open_to, key=lambda i: -ranked[i])[:k]
        total = sum(scores[chosen]) if normalise else 1
        gates[at][chosen] = scale * scores[chosen] / total
    return gates


def _flops(n: Letters) -> float:
    return 8 * n["*"] * n["X"]


def _sample(shape: tuple[int, ...], bias: bool = False, **attrs: Any) -> Sample:
    shapes = {"logits": shape} | ({"bias": shape[-1:]} if bias else {})
    return Sample(shapes=shapes, attrs=attrs)


OP = Op(
    signature="logits[*,X], bias?[X] -> gates[*,X]",
    reference=top_k_gates,
    formula=formula,
    doc=(
        "Scores are the softmax over experts, or a sigmoid of each. The k experts with the largest "
        "scores are chosen, of equal ones the first: scores plus `bias`, of the `kept` best of "
        "`groups` of neighbours. A gate is the score of a chosen expert (never its bias), 0 for "
        "the others, divided by their sum if normalised, times `scale`. In at least float32, cast "
        "back."
    ),
    attrs={
        "k": Attr("experts of a token"),
        "score": Attr("softmax or sigmoid", "softmax"),
        "normalise": Attr("whether the gates of a token are made to sum to 1", False),
        "scale": Attr("what gates are multiplied by", 1.0),
        "groups": Attr("groups of experts; 1: no groups", 1),
        "kept": Attr("groups of which experts may be chosen", 1),
        "group_by": Attr("what a group is worth: max, or the sum of its two best", "max"),
    },
    params={"bias": ZEROS},
    flops=_flops,
    tokenwise=("logits",),
    saves=("logits",),
    samples=[
        _sample((2, 3, 4), k=2, normalise=True),
        _sample((2, 3, 4), k=1),
        _sample((3, 6), bias=True, k=2, score="sigmoid", normalise=True, scale=2.5),
        _sample((3, 8), bias=True, k=3, groups=4, kept=2, group_by="top_2_sum", score="sigmoid"),
        _sample((3, 6), k=2, groups=3, kept=1),
        _sample((2, 3, 4), k=2, groups=2, kept=1),
    ],
    rejects=[
        Reject(
            shapes={"logits": (2, 4), "bias": (3,)},
            attrs={"k": 1},
            error="X is 4 in logits but 3 in bias",
        )
    ],
    cite="arXiv:1701.06538, arXiv:2412.19437",
)
