"""How far rounding alone may take a result: margins that hold on every processor.

How a sum is taken (the width of vectors, fused multiplications, blocks, threads) is chosen by the
processor, and with it each rounding. What does not depend on that: a sum of n numbers, in any
order, is off by about u sqrt(n) times its size, rarely by more, u the unit roundoff (N. J. Higham
and T. Mary, "A new approach to probabilistic rounding error analysis", 2019; added one after the
other, numbers of either sign are off by 0.4 u sqrt(n)). Another implementation's error in one draw
may be far below that, by chance or because it sums in blocks: a multiple of it alone is no margin.

Errors are root mean squares over a tensor: a single number's is chance.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 3.0  # of the other's error, which stands for what the steps in between amplify
SLACK = 2.0  # of what rounding makes by itself
STEPS = 2  # results that are rounded on the way


def unit(dtype: torch.dtype) -> float:
    """Half of a last place of 1: the most by which one rounding is off."""
    return torch.finfo(dtype).eps / 2


def root_mean_square(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt()) if x.numel() else 0.0


def margin(dtype: torch.dtype, *, terms: int, size: float) -> float:
    """How far a result may be off for its rounding. terms: of the longest sum in it, which types
    of 16 bits take in float32; size: of the result, or of what is summed where that cancels.
    """
    summed = unit(torch.promote_types(dtype, torch.float32)) * terms**0.5
    return SLACK * (STEPS * unit(dtype) + summed) * size


def assert_no_farther(
    found: Tensor,
    other: Tensor,
    exact: Tensor,
    *,
    terms: int,
    factor: float = FACTOR,
    size: float | None = None,
) -> None:
    """`found` is as near to `exact`, in float64, as `other` is, give or take its rounding.

    found, other: of one type, by two implementations. terms, size: as in `margin`; size: by default
    the root mean square of `exact`.
    """
    assert found.dtype == other.dtype and found.shape == exact.shape
    size = root_mean_square(exact) if size is None else size
    off, allowed = (root_mean_square(x.double() - exact) for x in (found, other))
    allowed = factor * allowed + margin(found.dtype, terms=terms, size=size)
    assert off <= allowed, f"off by {off:.3g}, where {allowed:.3g} is allowed"


def assert_near(found: Tensor, exact: Tensor, *, terms: int, size: float | None = None) -> None:
    """`found` is off from `exact`, in float64, by its rounding at most; terms, size as above."""
    assert_no_farther(found, exact.to(found.dtype), exact, terms=terms, size=size, factor=0.0)
