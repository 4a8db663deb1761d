"""Which slots of a cache new tokens may see: their own and all before."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Op, Reject, Sample


def cache_mask(slots: Any, cache: Any) -> Any:
    import torch

    slot = torch.arange(cache.shape[2], device=slots.device)
    return (slot <= slots[..., None])[:, None]


OP = Op(
    signature="slots[B,T]:int, cache[B,K,S,E] -> mask[B,1,T,S]:bool",
    reference=cache_mask,
    doc="True for slots up to the token's own; what lies behind is stale or empty.",
    samples=[Sample(shapes={"slots": (2, 3), "cache": (2, 3, 5, 4)})],
    rejects=[
        Reject(
            shapes={"slots": (2, 3), "cache": (3, 3, 5, 4)},
            error="B is 2 in slots but 3 in cache",
        )
    ],
)
