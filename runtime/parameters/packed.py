"""Tells kernels which weights the products of an inference program read: they keep copies."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from multiway.runtime import memory
from multiway.runtime.kernels.linear import prepacked
from multiway.runtime.kernels.versions import same
from multiway.runtime.parameters.derived import refuse_parts
from multiway.runtime.parameters.lookup import Reads

ROOM = 0.5  # of the memory that is free: copies that take more are not made


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A tensor that the program makes itself: an attribute of one of its modules."""

    module: nn.Module
    name: str


class Packing:
    """A hook in front of a program's forward, behind that of folded weights.

    groups: the weights of each product; parameters by their paths in `containers`.
    """

    def __init__(self, groups: Sequence[Sequence[str | Buffer]], containers: nn.Module) -> None:
        self.groups, self.containers = groups, containers
        every = [each for group in groups for each in group]
        self._reads = Reads([each for each in every if isinstance(each, str)])
        self._buffers = [each for each in every if isinstance(each, Buffer)]
        self._told: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        parameters = self._reads.of(self.containers)
        buffers = [getattr(each.module, each.name) for each in self._buffers]
        if not same(self._told, found := [*parameters, *buffers]):
            refuse_parts(parameters)
            self._tell(iter(parameters), iter(buffers))
            self._told = [weakref.ref(each) for each in found]

    def _tell(self, parameters: Any, buffers: Any) -> None:
        groups = [
            [next(parameters if isinstance(each, str) else buffers) for each in group]
            for group in self.groups
        ]
        fresh = [group for group in groups if not prepacked.known(group)]
        if _fits(sum(each.nbytes for group in fresh for each in group)):
            for group in fresh:
                prepacked.tell(group)


def _fits(size: int) -> bool:
    """Whether copies of so many bytes leave room, as far as the system tells."""
    free = memory.available_bytes()
    return free is None or size <= ROOM * free
