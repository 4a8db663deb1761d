"""Linears of several inputs: at once in C, and one input after another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comparing import check, draw, run
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels import blas, kernels, native
from multiway.runtime.kernels.linears import joined_linears, joined_sums, linear_sums, linears
from multiway.runtime.kernels.linears import ops as module

READS = [0, 1, 0, 2, 1, 0]  # which of three inputs each of six linears reads
WIDTHS = [5, 3, 7, 1, 4, 16]
LENGTHS = [3, 1, 20]
D = 6


@pytest.fixture(params=["at once", "apart"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether calls are computed in C, however small they are."""
    if request.param == "at once" and not blas.takes(torch.zeros(1)):
        pytest.skip(f"no products in C: {native.refused('blas')}")
    monkeypatch.setattr(module, "LARGE", 0 if request.param == "at once" else 1 << 60)
    monkeypatch.setattr(module, "LONG", 0)
    return bool(request.param == "at once")


def operands(dtype: torch.dtype, lengths: Sequence[int], biased: bool) -> list[Tensor]:
    """Three inputs, six weights, and six biases."""
    xs = [draw(2, length, D, dtype=dtype, seed=i) for i, length in enumerate(lengths)]
    weights = [draw(width, D, dtype=dtype, seed=i) for i, width in enumerate(WIDTHS)]
    return [*xs, *weights, *[draw(width, dtype=dtype) for width in WIDTHS * biased]]


def ours(*given: Tensor) -> tuple[Tensor, ...]:
    xs, weights, biases = given[:3], given[3:9], given[9:]
    return linears([xs[i] for i in READS], weights, biases or None)


def plain(*given: Tensor) -> tuple[Tensor, ...]:
    xs, weights, biases = given[:3], given[3:9], given[9:] or [None] * 6
    return tuple(F.linear(xs[i], w, b) for i, w, b in zip(READS, weights, biases, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fixed", [(), (0,), (0, 1, 2), (3, 5, 6), tuple(range(3, 9))])
def test_linears(at_once: bool, dtype: torch.dtype, biased: bool, fixed: tuple[int, ...]) -> None:
    check(ours, plain, operands(dtype, LENGTHS, biased), fixed)


@pytest.mark.parametrize("lengths", [(0, 2, 3), (0, 0, 0)])
def test_linears_of_nothing(at_once: bool, lengths: Sequence[int]) -> None:
    check(ours, plain, operands(torch.float64, lengths, True))


def test_results_that_nothing_reads(at_once: bool) -> None:
    given = operands(torch.float64, LENGTHS, True)
    unread = (2, 3, 6, 7, 8, 9, 12, 13, 14)
    check(lambda *each: ours(*each)[1:3], lambda *each: plain(*each)[1:3], given, unread)


def test_linears_of_views(at_once: bool) -> None:
    xs = [draw(4, D, 2).transpose(1, 2), draw(4, 9, D)[:, 2:5]]
    weights = [draw(D, 5).t(), draw(7, D)]
    check(
        lambda a, b, *w: linears([a, b], w),
        lambda a, b, *w: (F.linear(a, w[0]), F.linear(b, w[1])),
        [*xs, *weights],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fixed", [(), (0, 1), (2,), (4, 5)])
def test_linear_sums(
    at_once: bool, dtype: torch.dtype, biased: bool, fixed: tuple[int, ...]
) -> None:
    residuals = [draw(2, length, 5, dtype=dtype) for length in (3, 8)]
    xs = [draw(2, length, 4 + length, dtype=dtype) for length in (3, 8)]
    weights = [draw(5, x.shape[-1], dtype=dtype) for x in xs]
    biases = [draw(5, dtype=dtype, seed=i) for i in range(2 * biased)]

    def ours(*given: Tensor) -> tuple[Tensor, ...]:
        return linear_sums(given[:2], given[2:4], given[4:6], given[6:])

    def plain(*given: Tensor) -> tuple[Tensor, ...]:
        biases = given[6:] or [None] * 2
        return tuple(
            r + F.linear(x, w, b)
            for r, x, w, b in zip(given[:2], given[2:4], given[4:6], biases, strict=True)
        )

    check(ours, plain, [*residuals, *xs, *weights, *biases], fixed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fixed", [(), (0,), (0, 1), (2, 3, 6), (5,)])
@pytest.mark.parametrize("lengths", [(3, 20), (1, 0), (20, 3)])
def test_joined_linears(
    at_once: bool,
    dtype: torch.dtype,
    biased: bool,
    fixed: tuple[int, ...],
    lengths: tuple[int, int],
) -> None:
    xs = [draw(3, length, D, dtype=dtype, seed=i) for i, length in enumerate(lengths)]
    weights = [draw(5, D, dtype=dtype, seed=i) for i in range(6)]
    biases = [draw(5, dtype=dtype, seed=i) for i in range(6 * biased)]

    def ours(*given: Tensor) -> tuple[Tensor, ...]:
        return joined_linears(given[:2], given[2:8], given[8:], count=3)

    def plain(*given: Tensor) -> tuple[Tensor, ...]:
        biases = given[8:] or [None] * 6
        ys = [F.linear(given[i % 2], given[2 + i], biases[i]) for i in range(6)]
        return tuple(torch.cat(ys[i : i + 2], 1) for i in (0, 2, 4))

    check(ours, plain, [*xs, *weights, *biases], fixed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fixed", [(), (0, 1), (2,), (4,), (3, 5)])
@pytest.mark.parametrize("sizes", [(3, 20), (1, 0), (20, 3)])
def test_joined_sums(
    at_once: bool,
    dtype: torch.dtype,
    biased: bool,
    fixed: tuple[int, ...],
    sizes: tuple[int, int],
) -> None:
    residuals = [draw(3, length, 5, dtype=dtype) for length in sizes]
    x = draw(3, sum(sizes), D, dtype=dtype)
    weights = [draw(5, D, dtype=dtype, seed=i) for i in range(2)]
    biases = [draw(5, dtype=dtype, seed=i) for i in range(2 * biased)]

    def ours(*given: Tensor) -> tuple[Tensor, ...]:
        return joined_sums(given[:2], given[2], list(sizes), given[3:5], given[5:])

    def plain(*given: Tensor) -> tuple[Tensor, ...]:
        parts, biases = given[2].split(sizes, 1), given[5:] or [None] * 2
        return tuple(
            r + F.linear(x, w, b)
            for r, x, w, b in zip(given[:2], parts, given[3:5], biases, strict=True)
        )

    check(ours, plain, [*residuals, x, *weights, *biases], fixed)


def test_short_segments_are_joined_behind_their_products(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONG", 3)
    for lengths in ((3, 3), (4, 2)):
        xs = [draw(2, length, D).requires_grad_() for length in lengths]
        (y,) = joined_linears(xs, [draw(5, D), draw(5, D)], count=1)
        ours = type(y.grad_fn).__name__ == "_LinearsBackward"
        assert ours == (at_once and min(lengths) >= 3)


def test_one_function_for_all(at_once: bool) -> None:
    xs = [x.requires_grad_() for x in operands(torch.float32, LENGTHS, False)[:3]]
    ys = ours(*xs, *operands(torch.float32, LENGTHS, False)[3:])
    assert (len({y.grad_fn for y in ys}) == 1) == at_once
    with torch.no_grad():
        assert not any(y.requires_grad for y in ours(*operands(torch.float32, LENGTHS, False)))


def test_a_second_backward_says_so(at_once: bool) -> None:
    if at_once:
        x = draw(2, 3, D).requires_grad_()
        y, _ = linears([x, draw(2, 1, D)], [draw(5, D), draw(2, D)])
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_autocast_and_compilers_choose_for_themselves(at_once: bool) -> None:
    given = operands(torch.float32, LENGTHS, True)
    with torch.autocast("cpu"):
        assert all(y.dtype == torch.bfloat16 for y in ours(*given))
        kernel = kernels()["linear_sums"]
        assert kernel.refuses(given[:2], given[:2], given[3:5]) == (
            "autocast decides the types of products"
        )
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for one, other in zip(compiled(*given), plain(*given), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_parameters_are_their_own(at_once: bool) -> None:
    given = operands(torch.float64, LENGTHS, True)
    grads = run(ours, given)[6:]
    assert len({grad.untyped_storage().data_ptr() for grad in grads[3:]}) == 12
