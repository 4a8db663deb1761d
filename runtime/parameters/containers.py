"""Modules that hold parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from multiway.specs.errors import MultiwayError


class Parameters(nn.Module):
    """The parameters of one part of a model, under their names. It is never called: one call of a
    program reads the parameters of several parts, so a hook here would never run.
    """

    _kind = ""  # with the underscore: modalities and experts have their names here

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise _holds("cannot be called")

    def register_forward_hook(self, *_: Any, **__: Any) -> NoReturn:
        raise _holds("takes no hooks")

    register_forward_pre_hook = register_forward_hook
    register_full_backward_hook = register_forward_hook
    register_full_backward_pre_hook = register_forward_hook
    register_backward_hook = register_forward_hook

    def _get_name(self) -> str:
        return self._kind or type(self).__name__

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name} {list(p.shape)}" for name, p in self._parameters.items() if p is not None
        )


def name_kinds(model: nn.Module, readers: Mapping[str, str]) -> None:
    """Lets `repr` name the op that reads the parameters of each part. readers: by their paths."""
    for path, op in readers.items():
        part = model.get_submodule(path.rpartition(".")[0])
        assert isinstance(part, Parameters)
        part._kind = "".join(word.capitalize() for word in op.split("_"))


def _holds(refused: str) -> MultiwayError:
    return MultiwayError.one(
        "holds-parameters",
        f"a part of a block or a head holds parameters only, and {refused}: a program reads the "
        "parameters of several parts in one call",
        place="model",
        expected="a value inside a block by compile(..., taps=[...]), a hook on the model or on "
        "model.blocks[i], or a hook on the parameter itself",
    )


class WideParameters(Parameters):
    """Parameters of which some are float32 or wider in a model of any type.

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
