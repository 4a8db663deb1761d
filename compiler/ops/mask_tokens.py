"""Replaces masked tokens by one learned vector."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS
from multiway.compiler.graph.op import Op, Reject, Sample


def mask_tokens(x: Any, masked: Any, token: Any) -> Any:
    import torch

    return torch.where(masked[..., None], token.to(x.dtype), x)


def formula(x: Any, masked: Any, token: Any) -> Any:
    y = x.copy()
    y[masked] = token[0, 0]
    return y


OP = Op(
    signature="x[B,N,D], masked[B,N]:bool, token[1,1,D] -> y[B,N,D]",
    reference=mask_tokens,
    formula=formula,
    doc="`token` where `masked`, else x.",
    params={"token": ZEROS},
    samples=[Sample(shapes={"x": (2, 3, 4), "masked": (2, 3), "token": (1, 1, 4)})],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 4), "masked": (2, 4), "token": (1, 1, 4)},
            error="N is 3 in x but 4 in masked",
        )
    ],
    cite="arXiv:2106.08254",
)
