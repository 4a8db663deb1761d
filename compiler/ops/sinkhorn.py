"""Mixing matrices of lanes whose rows and columns sum to one."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ZEROS, Init
from multiway.compiler.graph.op import Attr, Letters, Op, Reject, Sample
from multiway.compiler.graph.precision import wide


def sinkhorn(
    z: Any,
    scale: Any,
    bias: Any,
    *,
    count: int,
    start: str,
    iterations: int,
    eps: float,
    transpose: bool,
) -> Any:
    logits = (wide(scale) * wide(z) + wide(bias)).unflatten(-1, (count, count))
    if start == "softmax":
        m = logits.softmax(-1) + eps
        m = m / (m.sum(-2, keepdim=True) + eps)
    else:
        m = (logits - logits.amax(-1, keepdim=True)).exp()
    for _ in range(iterations - 1 if start == "softmax" else iterations):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return (m.mT if transpose else m).to(z.dtype)


def formula(
    z: Any,
    scale: Any,
    bias: Any,
    *,
    count: int,
    start: str,
    iterations: int,
    eps: float,
    transpose: bool,
) -> Any:
    import numpy as np

    logits = (scale * z + bias).reshape(*z.shape[:-1], count, count)
    m = np.exp(logits - logits.max(-1, keepdims=True))
    steps = [-1, -2] * iterations  # over k are rows, over j are columns
    if start == "softmax":
        m = m / m.sum(-1, keepdims=True) + eps
        steps = steps[1:]
    for axis in steps:
        m /= m.sum(axis, keepdims=True) + eps
    return np.einsum("...jk->...kj", m) if transpose else m


def _flops(n: Letters) -> float:
    return 80 * n["*"] * n["N"] ** 2  # of 20 iterations, which a formula from sizes cannot see


def _sample(
    lead: tuple[int, ...], n: int, start: str, iterations: int, transpose: bool, eps: float = 1e-6
) -> Sample:
    return Sample(
        shapes={"z": (*lead, n * n), "scale": (1,), "bias": (n * n,)},
        attrs={
            "count": n,
            "start": start,
            "iterations": iterations,
            "eps": eps,
            "transpose": transpose,
        },
    )


OP = Op(
    signature="z[*,N*N], scale[1], bias[N*N] -> weights[*,N,N]",
    reference=sinkhorn,
    formula=formula,
    doc=(
        "Logits L[j, k] = scale z + bias, row-major. start softmax: softmax over k plus eps, then "
        "columns, then iterations - 1 times rows and columns. start exp: exp(L - max over k), then "
        "`iterations` times rows and columns. Rows are divided by their sum over k plus eps, "
        "columns by theirs over j plus eps. In at least float32, cast back."
    ),
    attrs={
        "count": Attr("number of lanes", letter="N"),
        "start": Attr("softmax or exp", "softmax"),
        "iterations": Attr("how often columns are normalised", 20),
        "eps": Attr("added to every sum, and to the softmax", 1e-6),
        "transpose": Attr("whether weights[k, j] is given for weights[j, k]", False),
    },
    params={"scale": Init(kind="constant", value=0.01), "bias": ZEROS},
    flops=_flops,
    tokenwise=("z",),
    saves=("z",),
    samples=[
        _sample((2, 3), 2, "softmax", 20, False),
        _sample((3,), 3, "softmax", 1, True),
        _sample((3,), 3, "softmax", 3, False),
        _sample((3,), 3, "exp", 2, False, eps=1e-2),
    ],
    rejects=[
        Reject(
            shapes={"z": (2, 3, 8), "scale": (1,), "bias": (8,)},
            attrs={"count": 2},
            error="N is 2 in attributes but 4 in z",
        )
    ],
    cite="arXiv:2512.24880",
)
