"""Binary cross entropy against soft labels."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def binary_cross_entropy(logits: Any, labels: Any, *, times_classes: bool) -> Any:
    import torch

    loss = torch.nn.functional.binary_cross_entropy_with_logits(wide(logits), wide(labels))
    return loss * logits.shape[-1] if times_classes else loss


def formula(logits: Any, labels: Any, *, times_classes: bool) -> Any:
    import numpy as np

    p = 1 / (1 + np.exp(-logits))
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
    return np.mean(loss) / (1 if times_classes else logits.shape[1])


OP = Op(
    signature="logits[B,V], labels[B,V] -> loss[]",
    reference=binary_cross_entropy,
    formula=formula,
    doc="Mean over batch and classes; with times_classes the sum over classes.",
    attrs={"times_classes": Attr("multiply by the number of classes", False)},
    flops=lambda n: 8 * n["B"] * n["V"],
    samples=[
        Sample(shapes={"logits": (2, 3), "labels": (2, 3)}, attrs={"times_classes": times})
        for times in (True, False)
    ],
    rejects=[
        Reject(
            shapes={"logits": (2, 3), "labels": (2, 4)},
            attrs={"times_classes": True},
            error="V is 3 in logits but 4 in labels",
        )
    ],
)
