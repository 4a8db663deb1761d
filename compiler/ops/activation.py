"""A function of every element."""

from __future__ import annotations

import math
from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def activation(x: Any, *, kind: str) -> Any:
    import torch

    f = torch.nn.functional
    functions: dict[str, Any] = {
        "gelu": f.gelu,
        "gelu_tanh": lambda y: f.gelu(y, approximate="tanh"),
        "silu": f.silu,
        "relu": f.relu,
        "relu_squared": lambda y: f.relu(y).square(),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    return functions[kind](x)


def formula(x: Any, *, kind: str) -> Any:
    import numpy as np

    if kind.startswith("gelu"):  # x times the probability that a normal number is below it
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        erf = np.tanh(inner) if kind == "gelu_tanh" else np.vectorize(math.erf)(x / np.sqrt(2))
        return x * (1 + erf) / 2
    positive = np.where(x > 0, x, 0)
    return {
        "silu": x / (1 + np.exp(-x)),
        "relu": positive,
        "relu_squared": positive**2,
        "tanh": (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
        "sigmoid": 1 / (1 + np.exp(-x)),
    }[kind]


OP = Op(
    signature="x[*] -> y[*]",
    reference=activation,
    formula=formula,
    doc="gelu is the exact (erf) form, gelu_tanh its approximation; relu_squared is relu(x)^2.",
    attrs={"kind": Attr("which function")},
    flops=lambda n: 8 * n["*"],
    tokenwise=("x",),
    saves=("x",),
    samples=[
        Sample(shapes={"x": (2, 3)}, attrs={"kind": kind})
        for kind in ("gelu", "gelu_tanh", "silu", "relu", "relu_squared", "tanh", "sigmoid")
    ],
    rejects=[Reject(shapes={}, attrs={"kind": "gelu"}, error="x is missing")],
    cite="arXiv:1606.08415",
)
