"""Batches of small products with results that lie as they like, or are added to.

torch's `bmm` wants its result in one piece: of others it multiplies one matrix after the other. MKL
asks for an address of each matrix and one distance between the rows of all. So a mix writes its
streams one behind the other, and adds to the gradients of all sources where these stand. Measured
with 2048 tokens x 256, 4 streams, 2 cores, ms of 2 / 7 / 13 / 25 sources, caches emptied between:

    streams   bmm, of each token behind the other      0.58  0.77  0.86  1.43
              here, one stream behind the other        0.45  0.68  0.85  1.53
    added     baddbmm_ of each source, 512 tokens each  0.48  1.18  2.09  3.89
              here                                      0.46  0.56  0.89  1.50
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multiway.runtime.kernels.blas.mkl import gemm_batch, scalars
from multiway.runtime.kernels.kernel import traced
from multiway.runtime.kernels.native.calls import addressable

CACHED_ELEMENTS = 1 << 21  # of products that are made in between: they are to stay in the cache
_MOST = 2**31 - 1  # a number that MKL can be given


def product(a: Tensor, b: Tensor) -> Tensor:
    """The products of a batch, [m, N, n]: row 0 of all of them, then row 1. By MKL in one piece.

    a: [N, m, k], b: [N, k, n], of one type. Autograd does not see it.
    """
    with torch.no_grad():
        out = a.new_empty(a.shape[1], len(a), b.shape[2])
        return out if _by_mkl(a, b, out.transpose(0, 1), False) else torch.bmm(a, b).transpose(0, 1)


def add_products(rows: Sequence[Tensor | None], a: Tensor, b: Tensor, new: Sequence[bool]) -> None:
    """rows[i][j] += row i of matrix j of the products of a batch; = where i is `new`.

    rows: m of [N, n] or None, a: [N, m, k], b: [N, k, n], of one type; m small beside N. No two
    elements of rows in one place. Autograd does not see what is written.
    """
    with torch.no_grad():
        left = list(rows)
        for start, run in _runs(rows, new):
            stop = start + len(run)
            if _by_mkl(a[:, start:stop], b, run.transpose(0, 1), not new[start]):
                left[start:stop] = [None] * len(run)
        if any(row is not None for row in left):
            _by_torch(left, a, b, new)


def _by_mkl(a: Tensor, b: Tensor, out: Tensor, add: bool) -> bool:
    """out = a b, or out += a b. False where MKL may not or cannot write and read these."""
    if traced() or not addressable(a, b, out) or not out.numel() or not a.shape[2]:
        return False
    function = gemm_batch(a.dtype)
    # By columns, as Fortran has them, each matrix is its own transpose: out' = b' a'.
    first, second, result = _laid(b), _laid(a), _laid(out)
    if function is None or first is None or second is None or result is None or result.turned:
        return False
    lists = [_places(x) for x in (b, a, out)]
    at_b, at_a, at = (ctypes.c_void_p(each.data_ptr()) for each in lists)
    real = ctypes.c_float if a.dtype == torch.float32 else ctypes.c_double
    one, start = scalars(real, 1, int(add))
    (count, rows, depth), columns = a.shape, b.shape[2]
    n, m, k, groups, size = scalars(ctypes.c_int64, columns, rows, depth, 1, count)
    step_b, step_a, step = scalars(ctypes.c_int64, first.step, second.step, result.step)
    turns = [b"T" if each.turned else b"N" for each in (first, second)]
    function(*turns, n, m, k, one, at_b, step_b, at_a, step_a, start, at, step, groups, size)
    return True


class _Layout(NamedTuple):
    """Whether matrices lie by columns, and the distance between two of those, or of rows."""

    turned: bool
    step: int


def _laid(x: Tensor) -> _Layout | None:
    """How matrices [rows, columns] lie, or None where neither of those is in one piece."""
    (rows, columns), (down, along) = x.shape[1:], x.stride()[1:]
    for turned, unit, step, length, many in (
        (False, along, down, columns, rows),
        (True, down, along, rows, columns),
    ):
        step = step if many > 1 else length  # of a single one it says nothing
        if (unit == 1 or length == 1) and length <= step <= _MOST:
            return _Layout(turned, step)
    return None


def _places(x: Tensor) -> Tensor:
    """The address of each matrix of a batch."""
    first, step, count = x.data_ptr(), x.stride(0) * x.element_size(), len(x)
    if not step:
        return torch.full((count,), first, device="cpu")
    return torch.arange(first, first + step * count, step, device="cpu")


def _runs(rows: Sequence[Tensor | None], new: Sequence[bool]) -> Iterator[tuple[int, Tensor]]:
    """Rows [N, n] that lie at equal distances in one piece of memory and are all new, or all to be
    added to, as [m, N, n], and the number of the first.
    """
    start = 0
    while start < len(rows):
        first, stop = rows[start], start + 1
        if first is None:
            start = stop
            continue
        step = _distance(first, rows[stop] if stop < len(rows) else None)
        while (
            step
            and stop < len(rows)
            and new[stop] == new[start]
            and _distance(rows[stop - 1], rows[stop]) == step
        ):
            stop += 1
        yield start, first.as_strided((stop - start, *first.shape), (step, *first.stride()))
        start = stop


def _distance(x: Tensor | None, y: Tensor | None) -> int:
    """Elements from x to y, which lies behind it in the same memory; else 0."""
    if x is None or y is None or x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
        return 0
    return max(0, int(y.storage_offset()) - int(x.storage_offset()))


def _by_torch(rows: Sequence[Tensor | None], a: Tensor, b: Tensor, new: Sequence[bool]) -> None:
    step = max(1, CACHED_ELEMENTS // max(1, len(rows) * b.shape[2]))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        made = torch.bmm(a[part], b[part])
        for row, each, fresh in zip(rows, made.unbind(1), new, strict=True):
            if row is not None:
                row[part].copy_(each) if fresh else row[part].add_(each)
