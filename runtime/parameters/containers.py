"""Modules that hold parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class WideParameters(nn.Module):
    """A module of whose own parameters some are float32 or wider in a model of any type.

    wide: their names. They follow to other devices and to wider types, and `half()`, `bfloat16()`,
    `to(dtype)` of this module, or of one around it, leave them float32: a bias that moves by steps
    of 0.001 would stand still in a narrower type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wide: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What all conversions of a module are made of: fn gives the new tensor for an old one."""
        found = [self._parameters.get(name) for name in self.wide]
        held: list[Any] = [each for each in found if each is not None]
        held += [each.grad for each in held if each.grad is not None]

        def careful(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            if not any(tensor is each for each in held):
                return made
            dtype = torch.promote_types(made.dtype, torch.float32)
            return made if made.dtype == dtype else tensor.to(made.device, dtype)

        super()._apply(careful, recurse)  # type: ignore[no-untyped-call]
        return self
