"""The generator of mixing weights, against the norm written in front: float64 decides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comparing import check, draw
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels import native
from multiway.runtime.kernels import token_weights as module
from multiway.runtime.kernels.norms import gelu
from multiway.runtime.kernels.token_weights import token_weights

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
needs_c = pytest.mark.skipif(
    native.library("gelu") is None, reason=f"no C kernel: {native.refused('gelu')}"
)


def inputs(rows: int, width: int, hidden: int, ways: int, sources: int) -> list[Tensor]:
    """x [2, rows, width], hidden [hidden, width], output and static."""
    shapes = [(2, rows, width), (hidden, width), (ways * sources, hidden), (ways, sources)]
    factors = [1, width**-0.5, hidden**-0.5, 1]
    drawn = [draw(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]
    return [x * factor for x, factor in zip(drawn, factors, strict=True)]


def compare(given: Sequence[Tensor], kind: str, fixed: Sequence[int] = ()) -> None:
    ways = given[3].shape[0]

    def kernel(*tensors: Tensor) -> Tensor:
        return token_weights(*tensors, ways=ways, eps=1e-5, kind=kind)

    def reference(x: Tensor, hidden: Tensor, output: Tensor, static: Tensor) -> Tensor:
        normed = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        weights = ACTIVATIONS[kind](normed @ hidden.t()) @ output.t()
        return weights.unflatten(-1, static.shape) + static

    check(kernel, reference, given, fixed)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("fixed", [(), (0,), (1, 2), (0, 3)])
@pytest.mark.parametrize("path", ["c", "torch"])
def test_results_and_gradients(
    kind: str, fixed: Sequence[int], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST", 1 if path == "c" else 1 << 40)
    compare(inputs(9, 20, 13, 4, 3), kind, fixed)


@needs_c
def test_large_ones_run_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("scaled", "scaled_backward"):
        function = getattr(gelu, name)

        def watched(*given: Tensor, name: str = name, function=function, **more: bool):  # type: ignore[no-untyped-def]
            ran.append(name)
            return function(*given, **more)

        monkeypatch.setattr(gelu, name, watched)
    given = inputs(260, 256, 64, 4, 7)
    compare(given, "gelu")
    assert ran == ["scaled", "scaled_backward"]
    compare([each.transpose(0, 1) if each.ndim == 3 else each for each in given], "gelu")


@needs_c
def test_what_is_not_finite_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST", 1)
    given = inputs(3, 20, 13, 4, 3)
    given[0][0, 1, 2] = torch.nan
    found = token_weights(*given, ways=4, eps=1e-5, kind="gelu")
    assert found[0, 1].isnan().all() and found[0, 0].isfinite().all() and found[1].isfinite().all()
