"""Batches of products: every layout, results that are added to, and torch where MKL is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from multiway.runtime.kernels import blas
from multiway.runtime.kernels.blas import batch, mkl

needs_mkl = pytest.mark.skipif(
    mkl.gemm_batch(torch.float32) is None, reason="torch has no MKL whose gemm_batch is found"
)
TYPES = [torch.float32, torch.float64, torch.bfloat16]

SIZES = [(5, 4, 3, 6), (1, 1, 1, 1), (3, 1, 4, 2), (3, 2, 1, 5), (2, 3, 4, 1)]
# Of [N, rows, columns], where element 0 is at the front of its memory.
LAYOUTS: dict[str, Callable[[int, int, int], Tensor]] = {
    "one behind the other": lambda n, r, c: torch.zeros(n, r, c),
    "row by row": lambda n, r, c: torch.zeros(r, n, c).transpose(0, 1),
    "turned": lambda n, r, c: torch.zeros(n, c, r).transpose(1, 2),
    "turned, row by row": lambda n, r, c: torch.zeros(c, n, r).permute(1, 2, 0),
    "part of more": lambda n, r, c: torch.zeros(n + 1, r + 2, c + 3)[:n, 1 : r + 1, 2 : c + 2],
    "with gaps": lambda n, r, c: torch.zeros(n, r, 2 * c)[..., ::2],
}


@pytest.fixture(params=["mkl", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(batch, "gemm_batch", lambda _: None)
        monkeypatch.setattr(batch, "CACHED_ELEMENTS", 7)  # several pieces of few elements
    return request.param


def draw(layout: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Small integers: sums of products are exact."""
    x = LAYOUTS[layout](*shape).to(dtype)
    return x.copy_(torch.randint(-4, 5, shape))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["a", "b", "out"])
@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_torchs(
    of: str, layout: str, dtype: torch.dtype, sizes: tuple[int, ...], way: str
) -> None:
    count, rows, depth, columns = sizes
    shapes = {
        "a": (count, rows, depth),
        "b": (count, depth, columns),
        "out": (rows, count, columns),
    }
    a, b, out = (
        draw(layout if name == of else "one behind the other", dtype, *shape)
        for name, shape in shapes.items()
    )
    wanted = (a.double() @ b.double()).transpose(0, 1)
    assert torch.equal(blas.product(a, b).double(), wanted)
    before = out.double().clone()
    blas.add_products([*out], a, b, [False] * rows)
    assert torch.equal(out.double(), before + wanted)
    out.fill_(torch.nan)  # what stands there is not read
    blas.add_products([*out], a, b, [True] * rows)
    assert torch.equal(out.double(), wanted)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
@pytest.mark.parametrize("new", [False, True])
def test_nothing_to_multiply(shape: tuple[int, ...], new: bool, way: str) -> None:
    count, rows, depth, columns = shape
    a, b, out = (
        torch.ones(count, rows, depth),
        torch.ones(count, depth, columns),
        torch.ones(rows, count, columns),
    )
    assert torch.equal(blas.product(a, b), torch.zeros_like(out))
    blas.add_products([*out], a, b, [new] * rows)
    assert torch.equal(out, torch.full_like(out, int(not new)))


def test_one_matrix_for_all(way: str) -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4, 6)
    torch.testing.assert_close(blas.product(a.expand(5, 3, 4), b), (a @ b).transpose(0, 1))


def test_what_lies_around_a_result_stays(way: str) -> None:
    whole = torch.full((9, 4, 7), 5.0)
    blas.add_products([*whole[2:5, :, 1:6]], torch.ones(4, 3, 2), torch.ones(4, 2, 5), [True] * 3)
    wanted = torch.full_like(whole, 5)
    wanted[2:5, :, 1:6] = 2
    assert torch.equal(whole, wanted)


@needs_mkl
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mkl_is_asked_where_rows_or_columns_are_in_one_piece(layout: str) -> None:
    shapes = [(4, 2, 3), (4, 3, 5), (4, 2, 5)]
    a, b, out = (draw(layout, torch.float32, *shape) for shape in shapes)
    plain = [draw("one behind the other", torch.float32, *shape) for shape in shapes]
    assert batch._by_mkl(a, plain[1], plain[2], False) is (layout != "with gaps")
    assert batch._by_mkl(plain[0], b, plain[2], False) is (layout != "with gaps")
    # A result has rows: one that is turned would be another product.
    rows = layout in ("one behind the other", "row by row", "part of more")
    assert batch._by_mkl(plain[0], plain[1], out, False) is rows


def test_runs_are_what_lies_at_equal_distances() -> None:
    room = torch.zeros(9, 3, 4)
    numbers = [0, 1, 2, 4, 6, 5, None, 7, 8]
    rows = [None if i is None else room[i] for i in numbers]
    new = [False, False, False, False, False, False, False, False, True]
    runs = [(first, len(run)) for first, run in batch._runs(rows, new)]
    assert runs == [(0, 3), (3, 2), (5, 1), (7, 1), (8, 1)]
    for first, run in batch._runs(rows, new):
        for row, part in zip(rows[first:], run, strict=False):
            assert row is not None and row.data_ptr() == part.data_ptr()


def test_modes_see_torchs_operators() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        blas.product(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert "aten.bmm.default" in seen


def test_without_an_mkl_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget() -> None:
        mkl.gemm.cache_clear()
        mkl.gemm_batch.cache_clear()

    forget()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert mkl.gemm(torch.float32) is None and mkl.gemm_batch(torch.float64) is None
    monkeypatch.undo()
    for wrong in ("_multiplies", "_multiplies_many"):
        forget()
        monkeypatch.setattr(mkl, wrong, lambda *_: False)
        assert mkl.gemm_batch(torch.float32) is None
        monkeypatch.undo()
    forget()


def test_another_function_is_found_out() -> None:
    def other(*_: object) -> None:
        """Does nothing."""

    assert not mkl._multiplies(other, torch.float32)
    assert not mkl._multiplies_many(other, torch.float64)
