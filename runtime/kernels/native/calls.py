"""What the wrappers of C kernels share: which tensors they take, and how many threads."""

from __future__ import annotations

import torch
from torch import Tensor

SUFFIX = {torch.float32: "float", torch.float64: "double"}
"""The end of a C function's name, by the type it is compiled for."""
ELEMENTS_PER_THREAD = 32768  # a thread more for less work than this costs more than it saves


def addressable(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all are torch's own tensors on the CPU, of the type of x, which has C functions."""
    return x.dtype in SUFFIX and all(
        type(each) in (Tensor, torch.nn.Parameter)
        and each.device.type == "cpu"
        and each.dtype == x.dtype
        for each in (x, *others)
        if each is not None
    )


def threads(elements: int, rows: int) -> int:
    """How many threads to run on so many elements in so many rows, which are not divided."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_PER_THREAD, rows))
