"""Random inputs for a program, to try it on."""

from __future__ import annotations

from typing import Any

import torch

from multiway.runtime.model import Model, new_cache

SIZES = {"B": 2, "T": 6}  # any other named length is 5


def random_inputs(model: Model, program: str, *, seed: int = 0) -> dict[str, Any]:
    """Inputs that a program accepts, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    found: dict[str, Any] = {}
    for each in model.expected(program):
        if each.many:
            found[each.name] = new_cache(model, batch=SIZES["B"], slots=_slots(model))
            continue
        shape = [SIZES.get(s, 5) if isinstance(s, str) else s for s in each.shape]
        if each.name == "positions":
            value = torch.arange(shape[1]).expand(shape)
        elif each.dtype == "int":
            value = torch.randint(0, each.below or 2, shape, generator=generator)
        elif each.dtype == "bool":
            value = torch.zeros(shape, dtype=torch.bool)
        else:
            value = torch.randn(shape, generator=generator).to(parameter.dtype)
        found[each.name] = value.to(parameter.device)
    return found


def _slots(model: Model) -> int:
    """Enough slots for every input of the head, and a few steps."""
    return sum(model.spec.tokens_of(name) or SIZES["T"] for name in model.spec.inputs) + 8


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of tensors are the same, bit for bit; on meta, of the same shapes."""
    if isinstance(a, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and (a.is_meta or torch.equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
