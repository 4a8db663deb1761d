"""Whether tensors that something was made from are still the same."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

Mark = tuple[weakref.ref[Tensor], int, int]
"""A tensor, where it lies, and how often it has been written to."""


def mark(x: Tensor) -> Mark:
    return weakref.ref(x), x.data_ptr(), _version(x)


def unchanged(marks: Sequence[Mark], tensors: Sequence[Tensor]) -> bool:
    """Whether these are the marked tensors, not written to since. Another one may lie where one was
    that is gone.
    """
    if len(marks) != len(tensors):
        return False
    for (ref, place, version), x in zip(marks, tensors, strict=True):
        if ref() is not x or place != x.data_ptr() or version != _version(x):
            return False
    return True


def _version(x: Tensor) -> int:
    """How often x has been written to. Of tensors of inference mode nobody counts that."""
    try:
        return x._version
    except RuntimeError:
        return -1
