"""Which slots of a cache new tokens may see: their own and all before."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def cache_mask(slots: Any, cache: Any) -> Any:
    import torch

    slot = torch.arange(cache.shape[2], device=slots.device)
    return (slot <= slots[..., None])[:, None]


def formula(slots: Any, cache: Any) -> Any:
    import numpy as np

    mask = np.zeros((*slots.shape, cache.shape[2]), bool)
    for b, t in np.ndindex(slots.shape):
        mask[b, t, : slots[b, t] + 1] = True
    return mask[:, None]


OP = Op(
    signature="slots[B,T]:int, cache[B,K,S,E] -> mask[B,1,T,S]:bool",
    reference=cache_mask,
    formula=formula,
    doc="True for slots up to the token's own; what lies behind is stale or empty.",
    samples=[Sample(shapes={"slots": (2, 3), "cache": (2, 3, 5, 4)})],
    rejects=[
        Reject(
            shapes={"slots": (2, 3), "cache": (3, 3, 5, 4)},
            error="B is 2 in slots but 3 in cache",
        )
    ],
)
