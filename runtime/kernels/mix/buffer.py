"""The memory of a history, in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from multiway.runtime.kernels.mix.history import Source

FEWEST = 1 << 19  # numbers in a hidden: no place is handed out for smaller ones


class Buffer:
    """Room for a history in one piece [capacity, ..., D], filled from the front when asked for.

    held: the sources that lie there. given: entries that were handed out to be written to. begun:
    those of them with a stream that a sum may still add to.
    """

    __slots__ = ("begun", "capacity", "data", "given", "held")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[Source] = []
        self.given: set[int] = set()
        self.begun: set[int] = set()
        self.data: Tensor | None = None

    def of(self, sources: Sequence[Source]) -> Tensor | None:
        """The sources as [L, ..., D]; None where another branch has gone on here, or it is full."""
        same = all(held is source for held, source in zip(self.held, sources, strict=False))
        if not same or len(sources) > self.capacity:
            return None
        data = self._data(sources[0].x)
        for source in sources[len(self.held) :]:
            # Through .data: autograd must not take this for a change of what earlier mixes saved.
            entry = data.data[len(self.held)]
            if entry.data_ptr() != source.x.data_ptr():
                if len(self.held) in self.given:
                    return None
                entry.copy_(source.x.detach())
            self.held.append(source)
        return data[: len(sources)]

    def entry(self, index: int, like: Tensor) -> Tensor | None:
        """The entry of this number, to be written to by whoever asks first; None if it is taken,
        or not of the shape and type of `like`.
        """
        if like.numel() < FEWEST or index >= self.capacity:
            return None
        if index < len(self.held) or index in self.given:
            return None
        data = self._data(like)
        if data.shape[1:] != like.shape or data.dtype != like.dtype or data.device != like.device:
            return None
        self.given.add(index)
        return data[index].data  # whose changes are counted apart from those of other entries

    def begin(self, index: int, like: Tensor) -> Tensor | None:
        """`entry` for a stream that a sum adds to."""
        found = self.entry(index, like)
        if found is not None:
            self.begun.add(index)
        return found

    def goes_on(self, index: int, x: Tensor) -> bool:
        """Whether x is a stream that was begun there, to which nothing was added yet."""
        if index not in self.begun or self.data is None:
            return False
        if self.data[index].data_ptr() != x.data_ptr():
            return False
        self.begun.remove(index)
        return True

    def _data(self, like: Tensor) -> Tensor:
        if self.data is None:
            size = (self.capacity, *like.shape)
            self.data = torch.empty(size, dtype=like.dtype, device=like.device)
        return self.data
