"""Whether tensors that something was made from are still the same."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

Version = tuple[weakref.ref[Tensor], int, int]
"""A tensor, where it lies, and how often it has been written to, or UNCOUNTED."""

UNCOUNTED = -1  # no version is that


def version_of(x: Tensor) -> Version:
    return weakref.ref(x), x.data_ptr(), x._version if counted(x) else UNCOUNTED


def counted(x: Tensor) -> bool:
    """Whether torch counts what is written to x. Of tensors of inference mode nobody does, and one
    that was converted there may have a `_version` that stands still: it is not asked.
    """
    return not x.is_inference()


def same(refs: Sequence[weakref.ref[Tensor]], tensors: Sequence[Tensor]) -> bool:
    """Whether these are the very tensors, written to or not. One may have the `id` of one gone."""
    if len(refs) != len(tensors):
        return False
    return all(ref() is x for ref, x in zip(refs, tensors, strict=True))


def unchanged(versions: Sequence[Version], tensors: Sequence[Tensor]) -> bool:
    """Whether these are the tensors of those versions, surely not written to since: never where
    writes are not counted. Another tensor may lie where one was that is gone.
    """
    if len(versions) != len(tensors):
        return False
    for (ref, place, version), x in zip(versions, tensors, strict=True):
        if version == UNCOUNTED or ref() is not x or place != x.data_ptr():
            return False
        if version != x._version:
            return False
    return True
