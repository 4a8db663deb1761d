"""Products in one call of C: every kind, several terms, what they start from, any threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from multiway.runtime.kernels import blas, native
from multiway.runtime.kernels.blas import Kind, compiled

SIZES = [(40, 24), (1, 5), (0, 7), (129, 16), (33, 1), (17, 0)]  # rows and columns of results
DEPTHS = [(3, 20), (1, 1), (0, 4), (64, 0), (0, 0), (16, 16)]  # of two terms each

needs_blas = pytest.mark.skipif(
    not blas.takes(torch.zeros(1)), reason=f"no products in C: {native.refused('blas')}"
)


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads, however small the products are."""
    before = torch.get_num_threads()
    monkeypatch.setattr(compiled, "FEWEST", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randint(-4, 5, shape).to(dtype)  # sums of products are exact


def operands(kind: Kind, dtype: torch.dtype, rows: int, depth: int, columns: int) -> list[Tensor]:
    a = draw(dtype, *((depth, rows) if kind is Kind.OUTER else (rows, depth)))
    return [a, draw(dtype, *((columns, depth) if kind is Kind.LINEAR else (depth, columns)))]


def product(kind: Kind, a: Tensor, b: Tensor) -> Tensor:
    return (a.t() if kind is Kind.OUTER else a) @ (b.t() if kind is Kind.LINEAR else b)


@needs_blas
@pytest.mark.parametrize("start", ["nothing", "first", "itself", "bias", "first and bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", Kind)
def test_products_are_torchs(kind: Kind, dtype: torch.dtype, start: str, threads: int) -> None:
    pairs = [
        [operands(kind, dtype, rows, depth, columns) for depth in depths]
        for (rows, columns), depths in zip(SIZES, DEPTHS, strict=True)
    ]
    made = [torch.full(size, torch.nan, dtype=dtype) for size in SIZES]
    first = [draw(dtype, *size) for size in SIZES]
    bias = [draw(dtype, columns) for _, columns in SIZES]
    wanted = [sum(product(kind, *pair) for pair in each) for each in pairs]
    if start == "itself":
        made = [each.clone() for each in first]
    if start in ("first", "itself", "first and bias"):
        wanted = [one + other for one, other in zip(wanted, first, strict=True)]
    if "bias" in start:
        wanted = [one + other for one, other in zip(wanted, bias, strict=True)]
    places = {"first": first, "itself": made, "first and bias": first}.get(start, [])
    blas.products(
        kind,
        dtype,
        rows=[rows for rows, _ in SIZES],
        columns=[columns for _, columns in SIZES],
        depth=list(itertools.chain.from_iterable(DEPTHS)),
        a=[a.data_ptr() for each in pairs for a, _ in each],
        b=[b.data_ptr() for each in pairs for _, b in each],
        c=[each.data_ptr() for each in made],
        first=[each.data_ptr() for each in places],
        bias=[each.data_ptr() for each in bias] if "bias" in start else (),
    )
    for found, other in zip(made, wanted, strict=True):
        assert torch.equal(found, other)


@needs_blas
def test_no_product_at_all() -> None:
    blas.products(Kind.PLAIN, torch.float32, rows=[], columns=[], depth=[], a=[], b=[], c=[])


@needs_blas
def test_what_is_not_taken() -> None:
    x = torch.zeros(2)
    assert blas.takes(x, x) and blas.takes(x.double())
    assert not blas.takes(x, x.double())
    assert not blas.takes(x.bfloat16())
    assert not blas.takes(x.to("meta"))
    with native.disabled():
        assert not blas.takes(x)


@needs_blas
def test_without_a_blas_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "gemm", lambda _: None)
    assert not blas.takes(torch.zeros(1))
