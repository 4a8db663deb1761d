"""A residual plus linears, by a function of its own and by torch's linear and addition."""

from __future__ import annotations

import pytest
import torch

from multiway.runtime.kernels.linear import linear_sum as module
from multiway.runtime.kernels.linear.linear_sum import linear_sum

pytestmark = pytest.mark.usefixtures("in_double")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fewest", [0, 1 << 19])
def test_values_and_gradients_are_those_of_its_definition(
    monkeypatch: pytest.MonkeyPatch, count: int, biased: bool, fewest: int
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "FEWEST", fewest)
    residual = torch.randn(2, 3, 5, requires_grad=True)
    xs = [torch.randn(2, 3, 4 + i, requires_grad=True) for i in range(count)]
    weights = [torch.randn(5, 4 + i, requires_grad=True) for i in range(count)]
    biases = [torch.randn(5, requires_grad=True) for _ in range(count * biased)]
    found = linear_sum(residual, xs, weights, biases)
    expected = residual.clone()
    for i, (x, weight) in enumerate(zip(xs, weights, strict=True)):
        expected = expected + torch.einsum("btd,fd->btf", x, weight)
        expected = expected + biases[i] if biased else expected
    torch.testing.assert_close(found, expected)
    leaves = [residual, *xs, *weights, *biases]
    seed = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, leaves, seed),
        torch.autograd.grad(expected, leaves, seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradients_of_biases_are_apart_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are equal, but whoever asked for them may change each in place."""
    monkeypatch.setattr(module, "FEWEST", 0)
    x, biases = torch.randn(3, 4), [torch.zeros(5, requires_grad=True) for _ in range(2)]
    weights = [torch.randn(5, 4) for _ in biases]
    y = linear_sum(torch.zeros(3, 5), [x, x], weights, biases)
    first, second = torch.autograd.grad(y.sum(), biases)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_a_small_sum_is_no_function_of_its_own() -> None:
    residual, x = torch.randn(3, 5, requires_grad=True), torch.randn(3, 4)
    small = linear_sum(residual, [x], [torch.randn(5, 4)])
    assert type(small.grad_fn).__name__ == "AddBackward0"
    many = torch.randn(module.FEWEST, 1, requires_grad=True)
    large = linear_sum(many, [many.detach()], [torch.randn(1, 1)])
    assert type(large.grad_fn).__name__ == "_LinearSumBackward"
