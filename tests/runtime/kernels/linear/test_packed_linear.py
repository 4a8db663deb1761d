"""Several linears of one input, and one product over weights that lie one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comparing import check, draw
from pairs import pairs
from torch import Tensor, nn

from multiway.runtime.kernels.linear import packed_linear


def plain_linears(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """What packed_linear computes: weights first, then biases."""
    count = len(parameters) // 2
    pairs = zip(parameters[:count], parameters[count:], strict=True)
    return tuple(nn.functional.linear(x, w, b) for w, b in pairs)


def packed_linears(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    count = len(parameters) // 2
    return packed_linear.packed_linear(x, parameters[:count], parameters[count:])


@pytest.fixture
def every_path(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No call is too small for the faster paths."""
    monkeypatch.setattr(packed_linear, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(packed_linear, "MANY_TOKENS", 0)
    return monkeypatch


def parts(widths: Sequence[int], *trailing: int, dtype: torch.dtype) -> list[Tensor]:
    """Tensors one behind the other in one storage."""
    return list(draw(sum(widths), *trailing, dtype=dtype).split(list(widths)))


@pairs(
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    together=[True, False],
    fixed=[(), (0,), (1, 2), (1, 2, 3), (4, 5, 6), (2, 6)],
    shape=[(2, 5, 7), (7,), (0, 7)],
)
def test_packed_linear(
    every_path: pytest.MonkeyPatch,
    dtype: torch.dtype,
    together: bool,
    fixed: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    widths = (3, 5, 2)
    parameters = [*parts(widths, 7, dtype=dtype), *parts(widths, dtype=dtype)]
    if not together:
        parameters = [each.clone() for each in parameters]
    assert packed_linear.adjacent(parameters[:3]) == together
    check(packed_linears, plain_linears, [draw(*shape, dtype=dtype), *parameters], fixed)


def test_packed_linear_takes_a_view_and_no_biases(every_path: pytest.MonkeyPatch) -> None:
    weights = parts((3, 5), 4, dtype=torch.float64)
    check(
        lambda x, *w: packed_linear.packed_linear(x, w),
        lambda x, *w: tuple(nn.functional.linear(x, each) for each in w),
        [draw(4, 6).t(), *weights],
    )


def products_of(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[str]:
    """The operators of a call, whose results are checked."""
    with torch.profiler.profile() as profile:
        found = packed_linear.packed_linear(x, weights, biases)
    for y, weight, bias in zip(found, weights, biases, strict=True):
        torch.testing.assert_close(y, nn.functional.linear(x, weight, bias))
    return [event.name for event in profile.events()]


def test_weights_that_lie_together_are_one_product_without_gradients(
    every_path: pytest.MonkeyPatch,
) -> None:
    x, widths = draw(6, 7), (3, 5, 2)
    weights, biases = parts(widths, 7, dtype=x.dtype), parts(widths, dtype=x.dtype)
    names = products_of(x, weights, biases)
    assert names.count("aten::addmm") == 1 and "aten::cat" not in names
    for apart in (
        (x, [each.clone() for each in weights], biases),
        (x, weights, [each.clone() for each in biases]),
        (x.clone().requires_grad_(), weights, biases),
    ):
        assert products_of(*apart).count("aten::addmm") == 3
    wide = parts((16, 32), 7, dtype=x.dtype)  # where one product is not faster
    assert products_of(x, wide, parts((16, 32), dtype=x.dtype)).count("aten::addmm") == 2


def test_gradients_of_one_weight_change_alone(every_path: pytest.MonkeyPatch) -> None:
    weights = [nn.Parameter(each.clone()) for each in parts((3, 5), 4, dtype=torch.float64)]
    x = draw(6, 4).requires_grad_()
    for _ in range(2):  # the second adds to the first
        sum(y.sum() for y in packed_linear.packed_linear(x, weights)).backward()
    kept = weights[1].grad.clone()
    weights[0].grad.mul_(3)
    nn.utils.clip_grad_norm_([weights[0]], 1e-3)
    assert torch.equal(weights[1].grad, kept)
    assert all(each.grad.is_contiguous() for each in weights)


def test_packed_linear_cannot_be_differentiated_twice(every_path: pytest.MonkeyPatch) -> None:
    x = draw(6, 4).requires_grad_()
    first, _ = packed_linear.packed_linear(x, parts((3, 5), 4, dtype=torch.float64))
    (grad,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_packed_linear_under_autocast_and_compile(every_path: pytest.MonkeyPatch) -> None:
    inputs = [draw(6, 4).float(), *parts((3, 5), 4, dtype=torch.float32)]
    with torch.autocast("cpu"):
        found = packed_linear.packed_linear(inputs[0], inputs[1:])
    assert all(y.dtype == torch.bfloat16 for y in found)
    compiled = torch.compile(packed_linear.packed_linear, fullgraph=True, backend="eager")
    assert [y.shape for y in compiled(inputs[0], inputs[1:])] == [(6, 3), (6, 5)]
