"""The memory of a history, in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from multiway.runtime.kernels.mix.history import Source


class Buffer:
    """A history in one piece of memory [capacity, ..., D], filled from the front when asked for.

    held: the sources that lie there.
    """

    __slots__ = ("capacity", "data", "held")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[Source] = []
        self.data: Tensor | None = None

    def of(self, sources: Sequence[Source]) -> Tensor | None:
        """The sources as [L, ..., D]; None where another branch has gone on here, or it is full."""
        same = all(held is source for held, source in zip(self.held, sources, strict=False))
        if not same or len(sources) > self.capacity:
            return None
        if self.data is None:
            like = sources[0].x
            size = (self.capacity, *like.shape)
            self.data = torch.empty(size, dtype=like.dtype, device=like.device)
        for source in sources[len(self.held) :]:
            # Through .data: autograd must not take this for a change of what earlier mixes saved.
            self.data.data[len(self.held)].copy_(source.x.detach())
            self.held.append(source)
        return self.data[: len(sources)]
