"""Tensors that an inference program makes from parameters once, such as folded weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one tensor is made: `function(**parameters)`, kept as buffer `name` of `module`."""

    module: nn.Module
    name: str
    function: Callable[..., torch.Tensor]
    parameters: Mapping[str, nn.Parameter]


class Folded:
    """Makes buffers by their recipes, and makes them again when a parameter has changed.

    groups: recipes whose tensors are to lie one behind the other in memory, by index, so that
    several linears run as one matrix product without a copy.
    """

    def __init__(self, recipes: Sequence[Recipe], groups: Sequence[Sequence[int]]) -> None:
        self.recipes, self.groups = list(recipes), [list(group) for group in groups]
        self._made_from: list[tuple[int, int]] = []

    def __call__(self, *_: Any) -> None:
        """Brings the buffers up to date: a hook in front of the program's forward."""
        state = [
            (p.data_ptr(), p._version) for each in self.recipes for p in each.parameters.values()
        ]
        if state != self._made_from:
            self._make()
            self._made_from = state

    @torch.no_grad()
    def _make(self) -> None:
        made = [each.function(**each.parameters) for each in self.recipes]
        for group in self.groups:
            joined = torch.cat([made[i] for i in group])
            parts = torch.split(joined, [len(made[i]) for i in group])
            for i, part in zip(group, parts, strict=True):
                made[i] = part
        for each, tensor in zip(self.recipes, made, strict=True):
            setattr(each.module, each.name, tensor)
