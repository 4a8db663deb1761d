"""balanced_add in C: values and gradients against float64, and every way to call it."""

from __future__ import annotations

import pytest
import torch

from multiway.runtime.kernels import native
from multiway.runtime.kernels.balance import balanced_add
from multiway.runtime.kernels.balance.ops import FEWEST, KERNELS

needs_c = pytest.mark.skipif(
    native.library("balance") is None, reason=f"no C kernel: {native.refused('balance')}"
)


def given(*shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    values = [torch.randn(s, generator=generator, dtype=dtype) for s in (shape, shape, (2,))]
    return [each.requires_grad_() for each in values]


def formula(a: torch.Tensor, b: torch.Tensor, balance: torch.Tensor) -> torch.Tensor:
    odds = balance.exp()
    return 2 * (odds[0] * a + odds[1] * b) / odds.sum()


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 5), (3, 1025), (2, 33, 1024)])
@pytest.mark.parametrize("way", ["c", "plain"])
def test_values_and_gradients(shape: tuple[int, ...], way: str) -> None:
    inputs = given(*shape)
    want = formula(*inputs)
    up = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes = torch.autograd.grad(want, inputs, up)
    if way == "plain":
        with native.disabled():
            found = balanced_add(*inputs)
    else:
        found = balanced_add(*inputs)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, inputs, up), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_float32_is_no_farther_than_torch() -> None:
    exact = given(4, 128, 768)
    up = torch.randn(4, 128, 768, generator=torch.Generator().manual_seed(1)).double()
    want = torch.autograd.grad(formula(*exact), exact, up)
    errors = []
    for function in (balanced_add, formula):
        inputs = [each.detach().float().requires_grad_() for each in exact]
        got = torch.autograd.grad(function(*inputs), inputs, up.float())
        errors.append([(a - b).norm() for a, b in zip(got, want, strict=True)])
    for ours, torchs in zip(*errors, strict=True):
        assert ours <= 3 * torchs + 1e-6


@needs_c
def test_situations_of_autograd() -> None:
    a, b, balance = given(64, 1024)
    want = formula(a, b, balance).sum()
    for wanted in ([a], [b], [balance], [a, balance]):
        found = balanced_add(a, b, balance).sum()
        for x, y in zip(
            torch.autograd.grad(found, wanted),
            torch.autograd.grad(want, wanted, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(x, y)
    strided = balanced_add(a.T, b.T, balance)
    torch.testing.assert_close(strided, formula(a.T, b.T, balance))
    strided.T.sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(balanced_add(a, b, balance), formula(a, b, balance))
    twice = torch.autograd.grad(balanced_add(a, b, balance).sum(), a, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(twice.sum(), balance)


def test_what_is_refused() -> None:
    (kernel,) = KERNELS
    small, large = given(3), given(FEWEST)
    assert kernel.refuses(*small) == "a is small: 3 numbers"
    half = [each.detach().bfloat16() for each in large]
    assert kernel.refuses(*half) == "a is torch.bfloat16"
    torch.testing.assert_close(
        balanced_add(*half).double(), formula(*half).double(), rtol=3e-2, atol=5e-2
    )
    assert kernel.refuses(*[each.detach().to("meta") for each in large]) == "a is on meta"
    with native.disabled():
        assert kernel.refuses(*large) == "C kernels are switched off"
