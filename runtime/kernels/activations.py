"""Activations by the names that a spec gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: F.silu(x),
    "relu": lambda x: F.relu(x),
    "relu_squared": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def activate(x: Tensor, kind: str) -> Tensor:
    """A function of every element; see compiler/ops/activation.py. Raises KeyError."""
    return _FUNCTIONS[kind](x)
