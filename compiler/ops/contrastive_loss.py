"""The loss of a batch of matching pairs."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def contrastive_loss(similarity: Any) -> Any:
    import torch

    scores = wide(similarity)
    target = torch.arange(scores.shape[0], device=scores.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2


def formula(similarity: Any) -> Any:
    import numpy as np

    p = np.exp(similarity)
    rows, columns = np.diag(p) / p.sum(1), np.diag(p) / p.sum(0)
    return -np.mean(np.log(rows * columns)) / 2


OP = Op(
    signature="similarity[B,B] -> loss[]",
    reference=contrastive_loss,
    formula=formula,
    doc="Mean of the cross entropies of rows and of columns; pair i matches i.",
    flops=lambda n: 10 * n["B"] ** 2,
    samples=[Sample(shapes={"similarity": (3, 3)})],
    rejects=[
        Reject(shapes={"similarity": (3, 4)}, error="B is 3 in similarity but 4 in similarity")
    ],
    cite="arXiv:2103.00020",
)
