"""Cross entropy against class numbers, over those that count."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.precision import wide
from multiway.runtime.labels import IGNORED


def cross_entropy(logits: Any, labels: Any, *, smoothing: float) -> Any:
    import math

    counted = labels != IGNORED
    log_p = wide(logits).log_softmax(-1)
    true = log_p.gather(-1, labels.where(counted, 0)[..., None])[..., 0]
    if smoothing:
        # KL divergence from a target with 1 - smoothing on the label and the rest spread evenly
        # over the others; its entropy is a constant that belongs to the value.
        rest = smoothing / (logits.shape[-1] - 1)
        entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(rest)
        loss = entropy - (1 - smoothing) * true - rest * (log_p.sum(-1) - true)
    else:
        loss = -true
    count = counted.sum()
    return (loss * counted).sum() / count.clamp(min=1), count


def formula(logits: Any, labels: Any, *, smoothing: float) -> Any:
    import numpy as np

    classes = logits.shape[-1]
    losses = []
    for z, label in zip(logits.reshape(-1, classes), labels.reshape(-1), strict=True):
        if label != -100:
            q = np.full(classes, smoothing / (classes - 1))
            q[label] = 1 - smoothing
            q_log_p = q * (z - np.log(np.exp(z).sum()))
            q_log_q = [each * np.log(each) for each in q if each]
            losses.append(np.sum(q_log_q) - np.sum(q_log_p))
    return np.sum(losses) / max(len(losses), 1), np.array(len(losses))


OP = Op(
    signature="logits[*,V], labels[*]:int -> loss[], count[]:int",
    reference=cross_entropy,
    formula=formula,
    doc=(
        "Mean over the labels that are not -100, and their number. With smoothing: the KL "
        "divergence to a target that gives `smoothing` evenly to the other classes."
    ),
    attrs={"smoothing": Attr("probability given to the wrong classes", 0.0)},
    flops=lambda n: 5 * n["*"] * n["V"],
    saves=("logits",),
    samples=[
        Sample(shapes={"logits": (2, 3, 4), "labels": (2, 3)}, attrs={"smoothing": 0.0}),
        Sample(shapes={"logits": (2, 4), "labels": (2,)}, attrs={"smoothing": 0.1}),
        Sample(
            shapes={"logits": (2, 3, 4), "labels": (2, 3)},
            attrs={"smoothing": 0.2},
            values={"labels": [[0, -100, 3], [-100, 2, 1]]},
        ),
        Sample(
            shapes={"logits": (3, 4), "labels": (3,)},
            attrs={"smoothing": 0.0},
            values={"labels": [-100, 2, -100]},
        ),
        Sample(
            shapes={"logits": (2, 4), "labels": (2,)},
            attrs={"smoothing": 0.0},
            values={"labels": [-100, -100]},
        ),
    ],
    rejects=[
        Reject(
            shapes={"logits": (2, 3, 4), "labels": (2, 4)},
            attrs={"smoothing": 0.0},
            error="* is [2,3] in logits but [2,4] in labels",
        )
    ],
)
