"""Scaled dot-product attention, with every score written out."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def attention(query: Any, key: Any, value: Any, mask: Any = None, *, causal: bool) -> Any:
    import torch

    if key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], 1) for t in (key, value))
    scores = wide(query) @ wide(key).transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value


def formula(query: Any, key: Any, value: Any, mask: Any = None, *, causal: bool) -> Any:
    import numpy as np

    y = np.zeros(query.shape)
    share = query.shape[1] // key.shape[1]  # query heads of a key head
    for b, h, t in np.ndindex(query.shape[:3]):
        k, v = key[b, h // share], value[b, h // share]
        seen = np.arange(len(k)) <= t if causal else np.ones(len(k), bool)
        if mask is not None:
            seen = seen & mask[b % len(mask), 0, t % mask.shape[2]]
        e = np.exp(k[seen] @ query[b, h, t] / np.sqrt(query.shape[-1]))
        y[b, h, t] = e @ v[seen] / e.sum()
    return y


def _shared(letters: dict[str, Any]) -> dict[str, Any]:
    return {"G": letters["H"] // letters["K"]}


OP = Op(
    signature="query[B,H,T,E], key[B,K,S,E], value[B,K,S,E], mask?[M,1,Q,S]:bool -> y[B,H,T,E]",
    reference=attention,
    formula=formula,
    doc=(
        "softmax(query key' / sqrt(E)) value; query head h reads key head h // (H / K). "
        "`mask` is true where a query may see a key; M is B or 1, Q is T or 1."
    ),
    attrs={"causal": Attr("position t sees 0 .. t only", False)},
    derive=_shared,
    flops=lambda n: 4 * n["B"] * n["H"] * n["T"] * n["S"] * n["E"],
    saves=("query", "key", "value", "output"),
    samples=[
        Sample(
            shapes={"query": (2, 4, 3, 5), "key": (2, 2, 3, 5), "value": (2, 2, 3, 5)},
            attrs={"causal": True},
        ),
        Sample(  # heads are as many as keys and as rows, key heads as many as queries
            shapes={"query": (4, 4, 2, 3), "key": (4, 2, 4, 3), "value": (4, 2, 4, 3)},
            attrs={"causal": False},
        ),
        Sample(
            shapes={"query": (2, 2, 3, 5), "key": (2, 2, 4, 5), "value": (2, 2, 4, 5)},
            attrs={"causal": False},
        ),
        Sample(
            shapes={
                "query": (2, 2, 1, 5),
                "key": (2, 1, 2, 5),
                "value": (2, 1, 2, 5),
                "mask": (2, 1, 1, 2),
            },
            attrs={"causal": False},
            values={"mask": [[[[True, False]]], [[[True, True]]]]},
        ),
        Sample(
            shapes={
                "query": (2, 2, 3, 5),
                "key": (2, 2, 3, 5),
                "value": (2, 2, 3, 5),
                "mask": (1, 1, 3, 3),
            },
            attrs={"causal": True},
            values={"mask": [[[[True, False, False], [False, True, True], [True, False, True]]]]},
        ),
    ],
    rejects=[
        Reject(
            shapes={"query": (2, 4, 3, 5), "key": (2, 2, 3, 6), "value": (2, 2, 3, 6)},
            attrs={"causal": True},
            error="E is 5 in query but 6 in key",
        )
    ],
    cite="arXiv:1706.03762",
)
