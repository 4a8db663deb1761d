"""The language of signatures: letters, `*`, `+`, products, what may be absent, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiway.compiler.graph.signature import ShapeError, infer, parse_signature
from multiway.compiler.graph.types import Dim, History, Sizes, Tensor, Type, add, multiply, sym

B, T = sym("B"), sym("T")


def outputs(
    text: str,
    *,
    letters: Mapping[str, Any] | None = None,
    derive: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    **arguments: Any,
) -> tuple[Type, ...]:
    return infer(parse_signature(text), arguments, letters or {}, derive)[0]


def error(text: str, **more: Any) -> str:
    with pytest.raises(ShapeError) as caught:
        outputs(text, **more)
    return str(caught.value)


def t(*shape: Dim) -> Tensor:
    return Tensor(shape)


def test_a_signature_is_taken_apart() -> None:
    signature = parse_signature("x[*,D], w?[F, D], ids[B]:int, parts+[B,T+] -> y{C}[*,F], n[]:int")
    assert [s.name for s in signature.inputs] == ["x", "w", "ids", "parts"]
    assert [s.mark for s in signature.inputs] == ["", "?", "", "+"]
    assert [s.kind for s in signature.inputs] == ["float", "float", "int", "float"]
    assert signature.slot("w").dims == ("F", "D")
    assert signature.slot("w").optional
    assert signature.slot("parts").variadic
    assert [(s.name, s.mark, s.dims, s.kind) for s in signature.outputs] == [
        ("y", "{C}", ("*", "F"), "float"),
        ("n", "", (), "int"),
    ]


def test_letters_agree_and_carry_names() -> None:
    assert outputs("x[B,T], w[T,F] -> y[B,F]", x=t(B, T), w=t(T, 5)) == (t(B, 5),)
    assert error("x[B,T], w[T,F] -> y[B,F]", x=t(B, T), w=t(4, 5)) == "T is T in x but 4 in w"
    assert error("x[B,B] -> y[B]", x=t(2, 3)) == "B is 2 in x but 3 in x"


def test_a_star_is_any_number_of_axes() -> None:
    for free in [(), (2,), (B, T, 7)]:
        assert outputs("x[*,D], b[D] -> y[*,D]", x=t(*free, 4), b=t(4)) == (t(*free, 4),)
    text = error("a[*], b[*] -> y[*]", a=t(2, T), b=t(2, 3))
    assert text == "* is [2,T] in a but [2,3] in b"
    assert error("x[*,D,E] -> y[D]", x=t(3)) == "x has 1 axes, needs [*,D,E]: [3]"
    assert outputs("x[B,*,D] -> y[B,*]", x=t(2, 3, 4, 5)) == (t(2, 3, 4),)


def test_an_optional_value_may_be_absent() -> None:
    signature = "x[D], w?[D] -> y[D]"
    assert outputs(signature, x=t(3)) == outputs(signature, x=t(3), w=t(3)) == (t(3),)
    assert error(signature, w=t(3)) == "x is missing"
    assert error(signature, x=t(3), w=t(4)) == "D is 3 in x but 4 in w"


def test_fixed_sizes_are_compared() -> None:
    assert outputs("x[1,D] -> y[D]", x=t(1, 5)) == (t(5),)
    assert error("x[1,D] -> y[D]", x=t(2, 5)) == "x: 2 should be 1"


def test_products_are_divided_and_multiplied() -> None:
    heads = {"H": 4}
    assert outputs("x[B,H*E] -> y[B,H,E]", letters=heads, x=t(B, 12)) == (t(B, 4, 3),)
    assert outputs("x[B,H,E] -> y[B,H*E]", x=t(B, 4, 3)) == (t(B, 12),)
    text = error("x[B,H*E] -> y[E]", letters=heads, x=t(B, 10))
    assert text == "x: 10 is not a multiple of H = 4"
    assert outputs("x[N*B] -> y[B]", letters={"N": 2}, x=t(multiply(2, B))) == (t(B),)
    assert error("x[N*B] -> y[B]", letters={"N": 2}, x=t(B)) == "x: B is not a multiple of N = 2"


def test_sums_are_worked_out() -> None:
    assert outputs("x[B,N] -> y[B,N+1]", x=t(B, T)) == (t(B, add(T, 1)),)
    assert outputs("h[L,*]:list -> h[L+1,*]:list", h=History(3, (B, 2))) == (History(4, (B, 2)),)


def test_parts_add_up() -> None:
    join = "parts+[B,T+,D] -> y[B,T+,D]"
    assert outputs(join, parts=[t(B, 5, 2), t(B, T, 2)]) == (t(B, add(T, 5), 2),)
    assert error(join, parts=[t(B, 5, 2), t(B, T, 3)]) == "D is 2 in parts.0 but 3 in parts.1"
    assert error(join, parts=[t(B, 5)]) == "parts.0 has 2 axes, needs [B,T+,D]"


def test_sizes_say_how_a_sequence_divides() -> None:
    split = "x[B,T+,D], sizes[T+]:sizes -> parts+[B,T+,D]"
    found = outputs(split, x=t(B, add(T, 5), 2), sizes=Sizes((5, T)))
    assert found == (t(B, 5, 2), t(B, T, 2))
    text = error(split, x=t(B, 9, 2), sizes=Sizes((5, T)))
    assert text == "T+ is T+5 in sizes but 9 in x"
    lengths = outputs("parts+[B,T+,D] -> sizes[T+]:sizes", parts=[t(B, 5, 2), t(B, T, 2)])
    assert lengths == (Sizes((5, T)),)


def test_a_count_repeats_an_output() -> None:
    found = outputs("h[L,*]:list, w[C,L] -> y{C}[*]", h=History(3, (B, 2)), w=t(4, 3))
    assert found == (t(B, 2),) * 4
    text = error("h[L,*]:list, w[C,L] -> y{C}[*]", h=History(3, (B, 2)), w=t(4, 5))
    assert text == "L is 3 in h but 5 in w"


def test_kinds_are_compared() -> None:
    ids, flags = Tensor((2,), "int"), Tensor((2,), "bool")
    assert outputs("x[T]:any -> y[T]:any", x=flags) == (flags,)
    assert outputs("x[T] -> y[T]:bool", x=t(2)) == (flags,)
    assert error("x[T]:int -> y[T]", x=t(2)) == "x should be int, is [2]"
    assert error("x[T] -> y[T]", x=ids) == "x should be float, is [2]:int"
    assert error("h[L,T]:list -> y[T]", h=t(3, 2)) == "h should be list, is [3,2]"
    assert error("parts+[T+]:any -> y[T+]:any", parts=[ids, flags]) == (
        "dtype is int in parts.0 but bool in parts.1"
    )


def test_attributes_and_rules_bind_letters() -> None:
    text = error("w[C,L] -> y[L]", letters={"L": 4}, w=t(2, 5))
    assert text == "L is 4 in attributes but 5 in w"
    half = {"derive": lambda letters: {"R": letters["N"] // 2}}
    assert outputs("x[N] -> y[R]", x=t(6), **half) == (t(3),)
    assert error("x[N], c[R] -> y[R]", x=t(6), c=t(4), **half) == "R is 4 in c but 3 in its rule"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_splitting_undoes_joining(lengths: list[int], width: int) -> None:
    parts = tuple(t(B, length, width) for length in lengths)
    (joined,) = outputs("parts+[B,T+,D] -> y[B,T+,D]", parts=list(parts))
    split = "x[B,T+,D], sizes[T+]:sizes -> parts+[B,T+,D]"
    assert outputs(split, x=joined, sizes=Sizes(tuple(lengths))) == parts
