"""The loss by which the logits of routers stay small."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def z_loss(zs: Any, tokens: Any) -> Any:
    import torch

    return torch.stack(list(zs)).sum() / torch.stack(list(tokens)).sum().clamp(min=1)


def formula(zs: Any, tokens: Any) -> Any:
    import numpy as np

    return np.sum(zs) / max(np.sum(tokens), 1)


OP = Op(
    signature="zs+[B], tokens+[B] -> loss[]",
    reference=z_loss,
    formula=formula,
    doc="The mean over tokens and layers of the square of log sum exp of a router's logits.",
    flops=lambda n: n["B"],
    samples=[
        Sample(shapes={"zs": [(2,), (2,)], "tokens": [(2,), (2,)]}),
        Sample(shapes={"zs": [(3,)], "tokens": [(3,)]}, values={"tokens": [[3.0, 0.0, 2.0]]}),
    ],
    rejects=[
        Reject(shapes={"zs": [(2,)], "tokens": [(3,)]}, error="B is 2 in zs.0 but 3 in tokens.0")
    ],
    cite="arXiv:2202.08906",
)
