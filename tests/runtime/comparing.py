"""Kernels beside their references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from rounding import assert_no_farther, margin
from torch import Tensor


def run(compute: Callable[..., Any], inputs: Sequence[Tensor], fixed: Sequence[int] = ()) -> list:
    """Results of `compute`, then the gradients in the inputs but for those at `fixed`."""
    leaves = [x.detach() for x in inputs]
    wanted = [x for i, x in enumerate(leaves) if x.is_floating_point() and i not in fixed]
    for x in wanted:
        x.requires_grad_()
    found = compute(*leaves)
    results = [found] if isinstance(found, Tensor) else list(found)
    tracked = [y for y in results if y.requires_grad]
    seeds = [torch.arange(1.0, y.numel() + 1).sin().view(y.shape).to(y) for y in tracked]
    grads = torch.autograd.grad(tracked, wanted, seeds, allow_unused=True)
    return [y.detach() for y in results] + list(grads)


def check(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    fixed: Sequence[int] = (),
) -> None:
    """Equal in float64; in a narrower type about as far from it as the reference."""
    floating = [x for x in inputs if x.is_floating_point()]
    dtype = floating[0].dtype
    exact = run(reference, [x.double() if x.is_floating_point() else x for x in inputs], fixed)
    found, plain = run(kernel, inputs, fixed), run(reference, inputs, fixed)
    scale = max((float(x.abs().max()) for x in exact if x.numel()), default=1.0) + 1e-9
    terms = max(x.numel() for x in (*floating, *exact))  # no sum is longer
    if dtype == torch.float64:  # and no two ways of rounding are so far apart
        scale *= max(1.0, 1e-12 / margin(dtype, terms=terms, size=1.0))
    for one, other, truth in zip(found, plain, exact, strict=True):
        assert one.dtype == other.dtype and one.shape == truth.shape
        if one.is_floating_point():
            assert_no_farther(one, other, truth, terms=terms, size=scale)
        else:
            assert torch.equal(one, other)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
