"""What the wrappers of C kernels share: which tensors they take, and how many threads."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

SUFFIX = {torch.float32: "float", torch.float64: "double"}
"""The end of a C function's name, by the type it is compiled for."""
SUFFIX_WITH_HALF = {**SUFFIX, torch.bfloat16: "bfloat16"}
"""The same where bfloat16 is read and written, and computed in float."""
NORMS = ("", "layer_norm", "rms_norm")
"""The kinds of norms, by the numbers that norm_kinds.h gives them; empty for none."""
OWN = (Tensor, torch.nn.Parameter)
"""The types of tensors whose memory may be looked at: torch's own."""
ELEMENTS_PER_THREAD = 32768  # a thread more for less work than this costs more than it saves


def alike(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all are torch's own tensors on the CPU, of the type of x."""
    dtype = x.dtype
    for each in (x, *others):
        if each is not None and (
            each.dtype is not dtype or not each.is_cpu or type(each) not in OWN
        ):
            return False
    return True


def addressable(x: Tensor, *others: Tensor | None) -> bool:
    """Whether they are `alike` and of a type that C functions are made for, each in `SUFFIX`."""
    return x.dtype in SUFFIX and alike(x, *others)


def threads(elements: int, rows: int) -> int:
    """How many threads to run on so many elements in so many rows, which are not divided."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_PER_THREAD, rows))


def check_memory(failed: int, name: str) -> None:
    """Raises MemoryError if so many threads of a C function got no memory to work in."""
    if failed:
        raise MemoryError(f"{name}: {failed} threads got no memory to work in")


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
    tensors: Sequence[Tensor | None], shape: Sequence[int], dtype: torch.dtype
) -> tuple[list[Tensor | None], list[int], list[int]]:
    """`rows_of` for tensors that must be on the CPU and of this shape and type: the rows, where
    they lie, and their steps; None, 0 and 0 for None.
    """
    width = shape[-1]
    rows: list[Tensor | None] = []
    places, steps = [], []
    for x in tensors:  # one loop, and few calls: a mix of many hiddens pays for each
        if x is None:
            row, place, step = None, 0, 0
        else:
            assert x.shape == shape and x.dtype is dtype and x.is_cpu
            row, step = (x, width) if x.is_contiguous() else rows_of(x)
            place = row.data_ptr()
        rows.append(row)
        places.append(place)
        steps.append(step)
    return rows, places, steps


def addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Where the tensors lie, 0 for None. They must be kept for as long as this is used."""
    return [0 if x is None else x.data_ptr() for x in tensors]


def lay_out(call: ctypes.Structure, keep: Iterable[Any], **lists: Sequence[int]) -> None:
    """Lays lists of integers and addresses behind each other in one block and points the fields of
    `call` of their names there; those of empty lists stay as they are. The call keeps the block
    and, for the addresses, `keep` for as long as it lives.
    """
    block, places = laid_out(lists.values())
    for name, place in zip(lists, places, strict=True):
        if place:
            setattr(call, name, place)
    call.kept = (block, *keep)


def laid_out(lists: Iterable[Sequence[int]]) -> tuple[array[int], list[int]]:
    """Lists of integers and addresses behind each other in one block, and where each begins, 0 for
    an empty one.

    One block, since between large products a call finds the caches empty: then each array that is
    made takes 10 us, however short, and one of ctypes more, as each length is a type of its own.
    """
    values: list[int] = []
    starts = []
    for each in lists:
        starts.append(len(values) if each else -1)
        values += each
    block = array("q", values)
    place = block.buffer_info()[0]
    return block, [place + 8 * start if start >= 0 else 0 for start in starts]


def sum_apart(call: Any, x: Tensor, sizes: Sequence[int], wanted: Sequence[bool] = ()) -> list[Any]:
    """Rows for sums over the rows of x, of these sizes and of the type of x, None for what is not
    wanted (default: all are); and room for a call, in which its threads sum all, each for itself
    (totals.h).

    Rows of their own: a view of one costs twice as much between large products.
    """
    call.room = x.new_empty(call.threads * sum(sizes), dtype=torch.float64)
    call.totals = call.room.data_ptr()
    make = x.new_empty if x.numel() else x.new_zeros  # of no rows, which no C function is given
    if not wanted:
        return [make(size) for size in sizes]
    return [make(size) if want else None for size, want in zip(sizes, wanted, strict=True)]
