"""Tensors that an inference program makes from parameters once, such as folded weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiway.runtime.kernels.kernel import transforms
from multiway.runtime.kernels.versions import Version, counted, unchanged, version_of
from multiway.runtime.parameters.lookup import Reads
from multiway.specs.errors import MultiwayError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one tensor is made: `function(**parameters)`, kept as buffer `name` of `module`."""

    module: nn.Module
    name: str
    function: Callable[..., Tensor]
    parameters: Mapping[str, str]  # role to spec path


def refuse_parts(parameters: Sequence[Tensor]) -> None:
    """Raises MultiwayError where a process holds a part of each parameter only: what is kept of
    them before the first block runs would be of the part."""
    sharding = sys.modules.get("torch.distributed.tensor")
    if sharding is not None and any(isinstance(each, sharding.DTensor) for each in parameters):
        raise MultiwayError.one(
            "sharded",
            "a program for inference keeps copies of weights, which FSDP has divided",
            place="model",
            expected="mode='train' for a model that is sharded",
        )


class Folded:
    """Makes buffers by their recipes, and makes them again when a parameter has changed: written
    to, replaced, or another one for a call (`torch.func.functional_call`). Where torch does not
    count writes, in tensors that were made in inference mode, every call makes them again.

    groups: recipes whose tensors are to lie one behind the other in memory, by index, so that
    several linears run as one matrix product without a copy.
    containers: the module that holds the parameters under their spec paths.
    """

    def __init__(
        self, recipes: Sequence[Recipe], groups: Sequence[Sequence[int]], containers: nn.Module
    ) -> None:
        self.recipes, self.groups = list(recipes), [list(group) for group in groups]
        self.containers = containers
        paths = (path for each in self.recipes for path in each.parameters.values())
        self._reads = Reads(list(dict.fromkeys(paths)))
        self._made_from: list[Version] | None = None

    def __call__(self, *_: Any) -> None:
        """Brings the buffers up to date: a hook in front of the program's forward."""
        found = self._reads.of(self.containers)
        if torch.compiler.is_compiling():  # made in every call: a graph sees no change of a weight
            self._make(dict(zip(self._reads.paths, found, strict=True)))
            self._made_from = None
            return
        if self._made_from is None or transforms() or not unchanged(self._made_from, found):
            refuse_parts(found)
            parameters = dict(zip(self._reads.paths, found, strict=True))
            # What takes part in differentiation is made for this call alone.
            if transforms() or (torch.is_grad_enabled() and any(x.requires_grad for x in found)):
                self._make(parameters)
                self._made_from = None
                return
            # Copies of a tensor are kept where its writes are counted (prepacked), so this one's
            # are if those of all that it is made from are, whatever mode the first call runs in.
            with torch.inference_mode(not all(map(counted, found))), torch.no_grad():
                self._make(parameters)
            self._made_from = [version_of(each) for each in found]

    def _make(self, parameters: Mapping[str, Tensor]) -> None:
        made = [
            each.function(**{role: parameters[path] for role, path in each.parameters.items()})
            for each in self.recipes
        ]
        for group in self.groups:
            joined = torch.cat([made[i] for i in group])
            parts = torch.split(joined, [len(made[i]) for i in group])
            for i, part in zip(group, parts, strict=True):
                made[i] = part
        for each, tensor in zip(self.recipes, made, strict=True):
            setattr(each.module, each.name, tensor)
