"""The MKL inside torch: functions of Fortran's BLAS that torch's own library holds.

They are looked for and tried: other builds of torch hide them. Of other libraries not every build
may be called from several threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch
from torch import Tensor

LETTER = {torch.float32: "s", torch.float64: "d"}
"""The first letter of a function's name, by the type it takes."""


def scalars(kind: Any, *values: float) -> list[Any]:
    """Numbers as Fortran takes them: by their address."""
    return [ctypes.byref(kind(value)) for value in values]


@functools.cache
def gemm(dtype: torch.dtype) -> Any | None:
    """The product of matrices of this type, or None."""
    found = _function(f"{LETTER[dtype]}gemm_")
    return found if found is not None and _multiplies(found, dtype) else None


@functools.cache
def gemm_batch(dtype: torch.dtype) -> Any | None:
    """Products of many matrices of this type, each at an address of its own, or None."""
    found = _function(f"{LETTER[dtype]}gemm_batch_") if gemm(dtype) is not None else None
    return found if found is not None and _multiplies_many(found, dtype) else None


def _function(name: str) -> Any | None:
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        library = ctypes.CDLL(os.path.join(torch.__path__[0], "lib", "libtorch_cpu.so"))
        return getattr(library, name)
    except (OSError, AttributeError):
        return None


def _multiplies(function: Any, dtype: torch.dtype) -> bool:
    """Whether a function is what Fortran's BLAS calls gemm: of small matrices it is right."""
    x, y, made, numbers = _small(dtype)
    m, n, k = scalars(ctypes.c_int64, 2, 4, 3)
    one, nothing = (ctypes.c_void_p(each.data_ptr()) for each in numbers)
    places = [ctypes.c_void_p(each[0].data_ptr()) for each in (y, x, made)]
    function(b"N", b"N", n, m, k, one, places[0], n, places[1], k, nothing, places[2], n)
    return torch.equal(made[0], x[0] @ y[0])


def _multiplies_many(function: Any, dtype: torch.dtype) -> bool:
    """The same of gemm_batch, which MKL adds to BLAS: one group of two products."""
    x, y, made, numbers = _small(dtype)
    m, n, k, groups, size = scalars(ctypes.c_int64, 2, 4, 3, 1, 2)
    one, nothing = (ctypes.c_void_p(each.data_ptr()) for each in numbers)
    lists = [torch.tensor([each[0].data_ptr(), each[1].data_ptr()]) for each in (y, x, made)]
    b, a, c = (ctypes.c_void_p(each.data_ptr()) for each in lists)
    function(b"N", b"N", n, m, k, one, b, n, a, k, nothing, c, n, groups, size)
    return torch.equal(made, x @ y)


def _small(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two of [2, 3], two of [3, 4], two of [2, 4] to write to, and the numbers 1 and 0."""
    x = torch.arange(1, 13, dtype=dtype).view(2, 2, 3)
    y = torch.arange(2, 26, dtype=dtype).view(2, 3, 4)
    return x, y, torch.ones(2, 2, 4, dtype=dtype), torch.tensor([1, 0], dtype=dtype)
