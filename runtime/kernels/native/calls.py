"""What the wrappers of C kernels share: which tensors they take, and how many threads."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SUFFIX = {torch.float32: "float", torch.float64: "double"}
"""The end of a C function's name, by the type it is compiled for."""
SUFFIX_WITH_HALF = {**SUFFIX, torch.bfloat16: "bfloat16"}
"""The same where bfloat16 is read and written, and computed in float."""
ELEMENTS_PER_THREAD = 32768  # a thread more for less work than this costs more than it saves


def alike(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all are torch's own tensors on the CPU, of the type of x."""
    return all(
        type(each) in (Tensor, torch.nn.Parameter)
        and each.device.type == "cpu"
        and each.dtype == x.dtype
        for each in (x, *others)
        if each is not None
    )


def addressable(x: Tensor, *others: Tensor | None) -> bool:
    """Whether they are `alike` and of a type that C functions are made for, each in `SUFFIX`."""
    return x.dtype in SUFFIX and alike(x, *others)


def threads(elements: int, rows: int) -> int:
    """How many threads to run on so many elements in so many rows, which are not divided."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_PER_THREAD, rows))


def rows_of(x: Tensor) -> tuple[Tensor, int]:
    """x [..., D] as rows that lie one step apart, copied only if they do not, and that step."""
    if x.is_contiguous():
        return x, x.shape[-1]
    if x.ndim == 3 and x.stride(-1) == 1:
        batch, length, _ = x.shape
        if batch == 1 or length == 1 or x.stride(0) == length * x.stride(1):
            return x, x.stride(1) if length > 1 else x.stride(0)
    return x.contiguous(), x.shape[-1]


def rows_of_all(
    tensors: Sequence[Tensor | None], like: Tensor
) -> tuple[list[Tensor | None], list[int]]:
    """`rows_of` for tensors on the CPU that must be of the shape and type of `like`; 0 for None."""
    shape, dtype = like.shape, like.dtype
    for x in tensors:
        assert x is None or (x.shape == shape and x.dtype == dtype and x.is_cpu)
    if all(x is not None and x.is_contiguous() for x in tensors):  # which they mostly are
        return list(tensors), [shape[-1]] * len(tensors)
    found = [(None, 0) if x is None else rows_of(x) for x in tensors]
    return [row for row, _ in found], [step for _, step in found]


def pointers(tensors: Iterable[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Where the tensors lie, NULL for None. They must be kept for as long as this is used."""
    found = [None if x is None else x.data_ptr() for x in tensors]
    return (ctypes.c_void_p * len(found))(*found)


def words(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    """Integers as C reads them."""
    found = list(values)
    return (ctypes.c_int64 * len(found))(*found)
