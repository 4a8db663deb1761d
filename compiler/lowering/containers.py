"""Modules for the parameters of a model: blocks, and others that hold parameters only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from multiway.runtime.block import Block, Blocks
from multiway.runtime.parameters.containers import Parameters, WideParameters


def containers_for(
    parameters: Iterable[tuple[str, nn.Parameter]], *, wide: Collection[str] = ()
) -> nn.Module:
    """A tree of modules that holds parameters under their paths. Those of blocks.N stand in Blocks.

    wide: paths of those that stay float32 at least when the model is converted.
    """
    parents = {path.rpartition(".")[0] for path in wide}
    root = nn.Module()
    for path, parameter in parameters:
        parent, _, name = path.rpartition(".")
        module, at = root, ""
        for part in parent.split("."):
            at = f"{at}.{part}" if at else part
            if part not in module._modules:
                module.add_module(part, _empty(at, wide=at in parents))
            module = module.get_submodule(part)
        module.register_parameter(name, parameter)
        if path in wide:
            assert isinstance(module, WideParameters)
            module.wide = (*module.wide, name)
    return root


def _empty(path: str, *, wide: bool) -> nn.Module:
    if path == "blocks":
        return Blocks()
    if path.startswith("blocks.") and path.count(".") == 1:
        return Block()
    return WideParameters() if wide else Parameters()


def empty_parameters(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    wide: Collection[str] = (),
) -> nn.Module:
    """Containers of uninitialised parameters. wide: paths of those that are float32 at least."""

    def made(path: str, shape: tuple[int, ...]) -> nn.Parameter:
        own = torch.promote_types(dtype, torch.float32) if path in wide else dtype
        return nn.Parameter(torch.empty(shape, device=device, dtype=own))

    made_all = ((path, made(path, shape)) for path, shape in shapes.items())
    return containers_for(made_all, wide=wide)
