"""A function of every element."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Attr, Op, Reject, Sample


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


OP = Op(
    signature="x[*] -> y[*]",
    reference=activation,
    doc="gelu is the exact (erf) form, gelu_tanh its approximation; relu_squared is relu(x)^2.",
    attrs={"kind": Attr("which function")},
    flops=lambda n: 8 * n["*"],
    tokenwise=("x",),
    saves=("x",),
    samples=[
        Sample(shapes={"x": (2, 3)}, attrs={"kind": kind})
        for kind in ("gelu", "gelu_tanh", "silu", "relu_squared", "tanh", "sigmoid")
    ],
    rejects=[Reject(shapes={}, attrs={"kind": "gelu"}, error="x is missing")],
    cite="arXiv:1606.08415",
)
