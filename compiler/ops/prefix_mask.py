"""The mask of a prefix language model."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.types import add


def prefix_mask(x: Any, sizes: Any) -> Any:
    import torch

    token = torch.arange(sum(sizes), device=x.device)
    prefix = token < sum(sizes[:-1])
    return (prefix[None, :] | (token[None, :] <= token[:, None]) & ~prefix[:, None])[None, None]


def formula(x: Any, sizes: Any) -> Any:
    import numpy as np

    total, prefix = sum(sizes), sum(sizes) - sizes[-1]
    mask = np.zeros((1, 1, total, total), bool)
    mask[..., :prefix] = True
    for token in range(prefix, total):
        mask[..., token, prefix : token + 1] = True
    mask[..., :prefix, prefix:] = False
    return mask


def _total(letters: dict[str, Any]) -> dict[str, Any]:
    return {"S": add(*letters["T+"])}


OP = Op(
    signature="x[B,T+,D], sizes[T+]:sizes -> mask[1,1,S,S]:bool",
    reference=prefix_mask,
    formula=formula,
    doc="The prefix sees the prefix; the last segment sees the prefix and its own past.",
    derive=_total,
    samples=[
        Sample(shapes={"x": (2, 5, 4), "sizes": (3, 2)}),
        Sample(shapes={"x": (2, 6, 4), "sizes": (1, 2, 3)}),
    ],
    rejects=[Reject(shapes={"x": (2, 6, 4), "sizes": (3, 2)}, error="T+ is 5 in sizes but 6 in x")],
    cite="arXiv:1905.03197",
)
