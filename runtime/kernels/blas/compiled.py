"""`blas.c`: many products in one call, each on one thread.

torch asks its BLAS for one product at a time, which takes all threads and ends when the last of
them is done. Where a layer takes several small ones, each on a thread of its own is faster.
Measured on the CPU (torch 2.13, MKL, 2 cores, float32, caches emptied between), time over that of
torch's products one after the other, for the result, the gradients of rows and of matrices:

    8 of 350 to 700 rows, 256 -> 352       0.91  0.87  0.90
    64 of 192 rows, 256 -> 128             0.79  0.76  0.73
    8 of 256 rows, 768 -> 1536             0.87  0.95  0.90
    2 of 1024 rows, 256 -> 704             0.94  0.95  0.95
    788 and 160 rows, 768 -> 3072          0.99  0.98  0.97
    8 of 8 rows, 768 -> 1536               0.88  0.85  0.73   (one at a time, but for matrices)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.blas.mkl import gemm
from multiway.runtime.kernels.kernel import traced
from multiway.runtime.kernels.native.calls import SUFFIX, alike, lay_out

FEWEST = 1 << 20  # multiplications of a thread
FEWEST_ROWS = 16  # of fewer, a product reads its matrix, which threads do faster together (0.7)


class Kind(IntEnum):
    """What is multiplied, numbered as in blas.c: a b', a b or a' b."""

    LINEAR = 0
    PLAIN = 1
    OUTER = 2


class _Call(ctypes.Structure):
    """`struct call` of blas.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("groups", "terms", "kind", "threads")),
        ("gemm", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("rows", "columns", "depth", "a", "b")),
        *((name, ctypes.c_void_p) for name in ("c", "first", "bias")),
    ]


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether products of these tensors are computed here."""
    return (
        x.dtype in SUFFIX
        and not traced()
        and alike(x, *others)
        and native.library("blas") is not None
        and gemm(x.dtype) is not None
    )


def products(
    kind: Kind,
    dtype: torch.dtype,
    *,
    rows: Sequence[int],
    columns: Sequence[int],
    depth: Sequence[int],
    a: Sequence[int],
    b: Sequence[int],
    c: Sequence[int],
    first: Sequence[int] = (),
    bias: Sequence[int] = (),
) -> None:
    """c = first + bias + a sum of products, for each of G groups.

    rows, columns: [G] of c. depth: [G * terms], what each product is summed over. a, b: [G * terms]
    addresses of contiguous [rows, depth] ([depth, rows] if OUTER) and [depth, columns] ([columns,
    depth] if LINEAR). c, first: [G] addresses of [rows, columns]; bias: [G] of [columns]; 0 in
    those, or none at all, is nothing. first may be c. The caller keeps all of it in memory.
    """
    groups, function = len(rows), gemm(dtype)
    assert function is not None
    if not groups:
        return
    terms = len(depth) // groups
    work = sum(
        rows[g] * columns[g] * sum(depth[g * terms : (g + 1) * terms]) for g in range(groups)
    )
    few = kind is not Kind.OUTER and max(rows) < FEWEST_ROWS
    call = _Call(
        groups=groups,
        terms=terms,
        kind=kind,
        threads=1 if few else max(1, min(torch.get_num_threads(), work // FEWEST)),
        gemm=ctypes.cast(function, ctypes.c_void_p).value,
    )
    none = (0,) * groups
    lists = {"rows": rows, "columns": columns, "depth": depth, "a": a, "b": b, "c": c}
    lay_out(call, (), **lists, first=first or none, bias=bias or none)
    loaded = native.library("blas")
    assert loaded is not None
    getattr(loaded, f"blas_{SUFFIX[dtype]}")(ctypes.byref(call))
