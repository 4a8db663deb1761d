"""Sizes that may be names: arithmetic, text, plain data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiway.compiler.graph.types import (
    Dim,
    History,
    Sizes,
    Sym,
    Tensor,
    Type,
    add,
    divide,
    from_plain,
    multiply,
    number,
    parse_dim,
    sym,
    to_plain,
)

NAMES = ("B", "T", "T_image", "S")
VALUES = {"B": 3, "T": 11, "T_image": 101, "S": 1009}
whole = st.integers(-50, 50)
terms = st.builds(lambda name, k: multiply(k, sym(name)), st.sampled_from(NAMES), whole)
dims: st.SearchStrategy[Dim] = st.builds(lambda parts: add(*parts), st.lists(terms | whole))
shapes = st.lists(dims, max_size=3).map(tuple)
types: st.SearchStrategy[Type] = (
    st.builds(Tensor, shapes, st.sampled_from(["float", "int", "bool"]))
    | st.builds(History, st.integers(1, 9), shapes)
    | st.builds(Sizes, shapes)
)


@given(dims, dims)
def test_sums_and_products_have_the_values_of_their_parts(a: Dim, b: Dim) -> None:
    assert number(add(a, b), VALUES) == number(a, VALUES) + number(b, VALUES)
    assert number(multiply(a, 7), VALUES) == 7 * number(a, VALUES)
    assert number(multiply(7, a), VALUES) == 7 * number(a, VALUES)


@given(dims, dims)
def test_equal_sums_are_equal_whatever_their_order(a: Dim, b: Dim) -> None:
    assert add(a, b) == add(b, a)
    assert hash(add(a, b)) == hash(add(b, a))
    assert add(a, b, multiply(-1, b)) == a


@given(dims, st.integers(1, 12))
def test_division_undoes_multiplication(dim: Dim, by: int) -> None:
    assert divide(multiply(dim, by), by) == dim


@given(dims, st.integers(2, 12))
def test_division_is_exact_or_refused(dim: Dim, by: int) -> None:
    found = divide(dim, by)
    if found is None:
        parts = [dim] if isinstance(dim, int) else [dim.const, *(k for _, k in dim.terms)]
        assert any(part % by for part in parts)
    else:
        assert multiply(found, by) == dim


@given(dims)
def test_a_size_survives_being_printed(dim: Dim) -> None:
    assert parse_dim(str(dim)) == dim


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (add(sym("T"), 197), "T+197"),
        (multiply(2, sym("B")), "2*B"),
        (add(sym("T"), -1), "T-1"),
        (add(sym("T"), sym("B")), "B+T"),
        (add(multiply(-2, sym("T")), 5), "-2*T+5"),
        (add(sym("T"), multiply(-1, sym("T")), 4), "4"),
    ],
)
def test_sizes_are_printed_like_sums(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_a_sum_without_names_is_a_number() -> None:
    assert add(sym("T"), 3, multiply(-1, sym("T"))) == 3
    assert not isinstance(add(1, 2), Sym)


def test_two_names_have_no_product() -> None:
    with pytest.raises(ValueError, match="has no name"):
        multiply(sym("T"), sym("B"))


def test_nothing_divides_by_zero() -> None:
    assert divide(6, 0) is None
    assert divide(sym("T"), 0) is None


@given(types)
def test_types_survive_json(kind: Type) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(kind)))) == kind


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Tensor((sym("B"), 3)), "[B,3]"),
        (Tensor((), "int"), "[]:int"),
        (Tensor((2,), "bool"), "[2]:bool"),
        (History(3, (sym("B"), 4)), "3x[B,4]"),
        (Sizes((5, sym("T"))), "sizes(5,T)"),
    ],
)
def test_types_are_printed_in_a_line(kind: Type, text: str) -> None:
    assert str(kind) == text
