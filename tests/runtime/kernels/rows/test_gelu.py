"""A linear with gelu and its norm, against what it stands for: float64 decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from comparing import check, draw
from pairs import pairs
from rounding import assert_near, assert_no_farther
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.linear.linear_activation import FEWEST, linear_activation
from multiway.runtime.kernels.native import calls
from multiway.runtime.kernels.rows import gelu_compiled

pytestmark = pytest.mark.skipif(
    native.library("gelu") is None, reason=f"no C kernel: {native.refused('gelu')}"
)
ALONE = gelu_compiled.Plan(norm="", eps=0.0)


def reference(norm: str) -> Callable[..., Tensor]:
    """What the kernel means, in the words of its docstring."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, *affine: Tensor | None) -> Tensor:
        y = x @ weight.t() if bias is None else x @ weight.t() + bias
        y = F.gelu(y)
        if not norm:
            return y
        if norm == "layer_norm":
            y = y - y.mean(-1, keepdim=True)
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        gain, shift = affine
        y = y if gain is None else y * gain
        return y if shift is None else y + shift

    return compute


def kernel(norm: str) -> Callable[..., Tensor]:
    return lambda *given: linear_activation(*given, kind="gelu", norm=norm, eps=1e-5)


def inputs(norm: str, *shape: int, width: int) -> list[Tensor]:
    """x, weight, bias and, with a norm, gain and shift."""
    channels = shape[-1]
    vectors = [draw(width, dtype=torch.float32, seed=s) for s in range(3 if norm else 1)]
    weight = draw(width, channels, dtype=torch.float32) * (2 / channels**0.5)
    return [draw(*shape, dtype=torch.float32), weight, *vectors]


@pairs(
    norm=["", "layer_norm", "rms_norm"],
    # Of one column, a layer norm is 0: two.
    sizes=[
        *[((2, 5, 33), 7), ((70, 17), 40), ((3,), 5), ((0, 8), 4), ((2, 3, 8), 3072), ((65, 4), 2)]
    ],
    fixed=[(), (0,), (1,), (2,), (0, 1, 2)],
)
def test_results_and_gradients(
    norm: str, sizes: tuple[tuple[int, ...], int], fixed: Sequence[int]
) -> None:
    shape, width = sizes
    given = inputs(norm, *shape, width=width)
    if not norm and fixed == (0, 1, 2):
        fixed = (1, 2)
    check(kernel(norm), reference(norm), given, fixed)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("missing", [(2,), (3,), (4,), (2, 3, 4)])
def test_without_some_vectors(norm: str, missing: Sequence[int]) -> None:
    given = inputs(norm, 9, 6, width=11)
    kept = [x for i, x in enumerate(given) if i not in missing]

    def without(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*some: Tensor) -> Tensor:
            left = iter(some)
            return compute(*(None if i in missing else next(left) for i in range(5)))

        return run

    check(without(kernel(norm)), without(reference(norm)), kept)


def test_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ELEMENTS_PER_THREAD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for norm in gelu_compiled.NORMS:
            check(kernel(norm), reference(norm), inputs(norm, 101, 6, width=9))
    finally:
        torch.set_num_threads(threads)


def numbers() -> Tensor:
    """Everywhere: dense around 0 and in the tails, then on a grid of all magnitudes."""
    dense = torch.linspace(-14, 14, 1 << 19)
    powers = torch.logspace(-44, 38, 1 << 15, dtype=torch.float64).float()
    return torch.cat([dense, powers, -powers]).view(-1, 1 << 12 | 1 << 9)


def slopes(x: Tensor) -> Tensor:
    """gelu'(x) = Phi(x) + x phi(x), in float64."""
    x = x.double()
    density = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    return torch.special.ndtr(x) + torch.where(density > 0, x * density, 0.0)


def test_gelu_of_every_magnitude_is_near() -> None:
    x = numbers()
    exact = x.double() * torch.special.ndtr(x.double())
    found = gelu_compiled.forward(ALONE, x, None, None, torch.full_like(x, math.nan))
    ours = (found.double() - exact).abs()
    # The fit is 1e-8 from Phi, and four roundings of numbers up to 1 are 2.4e-7. torch's own error
    # is no measure: it depends on the processor.
    assert (ours <= 2.5e-7 * x.abs() + 1e-45).all()  # 1e-45: half of the least float
    near = (x > -1) & (x != 0)
    assert (ours[near] <= 8e-7 * exact[near].abs() + 1e-45).all()
    assert found[x < -6].count_nonzero() == 0 and (found[x > 6] == x[x > 6]).all()


def test_the_slope_of_every_magnitude_is_near() -> None:
    x = numbers()
    exact = slopes(x)
    found = gelu_compiled.backward(ALONE, x, None, torch.ones_like(x))
    assert ((found.x.double() - exact).abs() <= 3e-7).all()  # as above: slopes are up to 1.13
    assert (found.x[x > 7] == 1).all() and found.x[x < -7].count_nonzero() == 0
    assert_near(found.summed, found.x.double().sum(0), terms=1)  # summed in float64


def test_what_is_no_number() -> None:
    x = torch.tensor([[math.inf, math.nan, -math.inf, 0.0, -0.0] * 5])
    y = gelu_compiled.forward(ALONE, x, None, None, torch.empty_like(x)).view(5, 5)
    # -inf times Phi(-inf), which is 0, is no number in torch either.
    torch.testing.assert_close(
        y[0], torch.tensor([math.inf, math.nan, math.nan, 0.0, -0.0]), equal_nan=True
    )
    assert torch.signbit(y[:, 4]).all() and not torch.signbit(y[:, 3]).any()
    d = gelu_compiled.backward(ALONE, x, None, torch.ones_like(x)).x.view(5, 5)
    torch.testing.assert_close(d[4], torch.tensor([1.0, math.nan, 0.0, 0.5, 0.5]), equal_nan=True)


@pytest.mark.parametrize("norm", ["", "layer_norm"])
def test_without_gradients_the_numbers_are_the_same_and_inputs_stay(norm: str) -> None:
    given = inputs(norm, 4, 6, width=33)
    before = [x.clone() for x in given]
    with torch.no_grad():
        bare = kernel(norm)(*given)
    with torch.inference_mode():
        inference = kernel(norm)(*given)
    tracked = kernel(norm)(given[0].requires_grad_(), *given[1:])
    assert torch.equal(bare, tracked) and torch.equal(inference, tracked)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("norm", ["", "layer_norm"])
def test_backward_may_run_again_and_leaves_its_gradient_alone(norm: str) -> None:
    given = [x.requires_grad_() for x in inputs(norm, 4, 6, width=33)]
    y = kernel(norm)(*given)
    seed = torch.ones(()).expand(4, 33)  # not contiguous
    first = torch.autograd.grad(y, given, seed, retain_graph=True)
    second = torch.autograd.grad(y, given, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    storages = {each.untyped_storage().data_ptr() for each in first}
    assert len(storages) == len(first)  # optimizers change gradients in place
    total = kernel(norm)(*given).square().sum()
    (slope,) = torch.autograd.grad(total, given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_strided_inputs() -> None:
    given = inputs("", 6, 5, width=8)
    given[0] = draw(5, 3, 2, dtype=torch.float32).permute(2, 1, 0)
    given[1] = draw(5, 8, dtype=torch.float32).t()
    check(kernel(""), reference(""), given)


def test_what_it_does_not_take() -> None:
    kernel = kernels()["linear_activation"]
    takes = kernel.takes
    assert takes is not None
    settings = {"kind": "gelu", "norm": "", "eps": 1e-5}
    x, weight = torch.zeros(FEWEST // 8, 2), torch.zeros(8, 2)
    assert takes(x, weight, **settings) is None
    assert takes(x[1:], weight, **settings) == "the result has fewer than 131072 numbers"
    assert kernel.fits({**settings, "kind": "silu"}, {}) == "activation silu"
    assert kernel.fits(settings, {}) is None
    assert takes(x.double(), weight, **settings) == "x is torch.float64"
    assert takes(x.bfloat16(), weight.bfloat16(), **settings) == "x is torch.bfloat16"
    assert takes(x.bfloat16(), weight.bfloat16(), **{**settings, "norm": "rms_norm"}) is None
    assert takes(x, weight.double(), **settings) == "types differ"
    assert takes(x.to("meta"), weight, **settings) == "x is on meta"
    assert takes(x, torch.zeros(8193, 2), **settings) == "the result is wide: 8193"
    assert takes(x, weight, None, weight[:, 0], **settings) == "a gain without a norm"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert takes(x, weight, **settings) == "autocast decides the types of products"
    with native.disabled():
        assert takes(x, weight, **settings) == "C kernels are switched off"


@pytest.mark.parametrize("norm", gelu_compiled.NORMS)
@pytest.mark.parametrize("width", [1, 7, 48, 3072])
def test_bfloat16_is_float32_rounded_once(norm: str, width: int) -> None:
    plan = gelu_compiled.Plan(norm=norm, eps=1e-5)
    x, grad, gain, shift = (
        draw(*shape, dtype=torch.float32, seed=i).bfloat16()
        for i, shape in enumerate([(70, width), (70, width), (width,), (width,)])
    )
    wide = x.float(), gain.float() if norm else None, shift.float() if norm else None
    affine = (gain, shift) if norm else (None, None)
    found = gelu_compiled.forward(plan, x, *affine, out=torch.full_like(x, math.nan))
    exact = gelu_compiled.forward(plan, *wide, out=torch.empty(70, width))
    assert torch.equal(found, exact.bfloat16())
    assert torch.equal(gelu_compiled.forward(plan, x.clone(), *affine, out=x.clone()), found)
    ours, exacts = (
        gelu_compiled.backward(plan, x, affine[0], grad),
        gelu_compiled.backward(plan, wide[0], wide[1], grad.float()),
    )
    for name in ("x", "summed", "gain", "shift"):
        assert torch.equal(getattr(ours, name), getattr(exacts, name).bfloat16()), name


def test_what_is_not_finite_passes_in_bfloat16() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = every.view(torch.bfloat16).view(256, 256)
    found = gelu_compiled.forward(ALONE, x, None, None, torch.empty_like(x))
    exact = gelu_compiled.forward(ALONE, x.float(), None, None, torch.empty(256, 256)).bfloat16()
    assert torch.equal(found.isnan(), x.isnan() | exact.isnan())
    assert torch.equal(found[~found.isnan()], exact[~found.isnan()])


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_bfloat16_is_no_farther_from_float64_than_torch(norm: str) -> None:
    given = [x.bfloat16() for x in inputs(norm, 90, 64, width=96)]
    weigh = draw(90, 96, dtype=torch.float32)

    def results(compute: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in given]
        y = compute(*leaves)
        return [y, *torch.autograd.grad((y * weigh).sum(), leaves)]

    def composed(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        y = F.gelu(F.linear(x, weight, bias))
        if norm == "layer_norm":
            return F.layer_norm(y, (96,), gain, shift)
        return F.rms_norm(y, (96,), gain, 1e-5) + shift

    exact = results(reference(norm), torch.float64)
    ours, eager = results(kernel(norm), torch.bfloat16), results(composed, torch.bfloat16)
    for one, other, truth in zip(ours, eager, exact, strict=True):
        assert_no_farther(one, other, truth, terms=96, factor=1.1)
