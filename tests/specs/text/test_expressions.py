"""Expressions compute what Python computes, in doubles, and refuse what it would carry on with."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from multiway.specs.text.expressions import (
    FUNCTIONS,
    MAX_LENGTH,
    MAX_NESTING,
    MAX_TOKENS,
    ExpressionError,
    evaluate,
    parse,
)

NAMES = {"depth": 12.0, "width": 768.0, "layer": 3.0, "ratio": 2.5, "last": True, "zero": 0.0}

# What the functions of the language are called in the Python that it is compared with.
PYTHON = {
    "min": min,
    "max": max,
    "floor": math.floor,
    "ceil": math.ceil,
    "round_to": lambda x, m: round(x / m) * m,
    "round_up": lambda x, m: math.ceil(x / m) * m,
    "sqrt": math.sqrt,
    "log": math.log,
}


def value_of(text: str, **names: float) -> float:
    return evaluate(parse(text), {**NAMES, **names})


def error_of(text: str) -> ExpressionError:
    with pytest.raises(ExpressionError) as found:
        value_of(text)
    return found.value


def under(text: str) -> str:
    """The characters that an error points at."""
    error = error_of(text)
    return text[error.start : error.start + error.length]


# Against Python


LITERALS = st.integers(0, 10**6).map(str) | st.floats(0, 1e6, allow_nan=False).map(repr)
ATOMS = LITERALS | st.sampled_from(["depth", "width", "layer", "ratio", "zero"])
ARITHMETIC = st.sampled_from([" + ", " - ", " * ", " / ", " // ", " % ", "-", "*"])
COMPARISON = st.sampled_from([" < ", " <= ", " > ", " >= ", " == ", " != "])


@st.composite
def expressions(draw: st.DrawFn, *, depth: int = 3) -> str:
    """An expression in Python's grammar. Parts stand in brackets or not: precedence decides too."""

    def part() -> str:
        text = draw(expressions(depth=depth - 1))
        return draw(st.sampled_from([text, f"({text})"]))

    match draw(st.integers(0, 7)) if depth else 0:
        case 0 | 1:
            return draw(ATOMS)
        case 2 | 3:
            return part() + draw(ARITHMETIC) + part()
        case 4:
            return f"-{part()}"
        case 5:
            return f"{draw(st.sampled_from(['floor', 'ceil', 'sqrt', 'log']))}({part()})"
        case 6:
            function = draw(st.sampled_from(["min", "max", "round_to", "round_up"]))
            return f"{function}({part()}, {part()})"
        case _:
            return f"({part()} if {draw(conditions(depth=depth - 1))} else {part()})"


@st.composite
def conditions(draw: st.DrawFn, *, depth: int) -> str:
    left, right = (f"({draw(expressions(depth=min(depth, 1)))})" for _ in range(2))
    compared = left + draw(COMPARISON) + right
    if depth and draw(st.booleans()):
        compared += draw(st.sampled_from([" and ", " or "])) + draw(conditions(depth=depth - 1))
    return draw(st.sampled_from(["", "not "])) + compared


@settings(max_examples=600)
@given(expressions())
def test_random_expressions_are_those_of_python(text: str) -> None:
    if code_or_value(text) == "bad-expression":
        assert "more than" in error_of(text).message, "only what is too long is no expression here"
        return
    names = {**NAMES, **PYTHON, "__builtins__": {}}
    try:
        # Texts of literals are doubles here and may be ints in Python: dims always are doubles.
        want = eval(text, names)
    except ZeroDivisionError:
        # Or what is divided is infinite already, which Python does not mind.
        assert error_of(text).code in ("division-by-zero", "not-finite")
    except (ValueError, OverflowError):
        assert error_of(text).code in ("not-finite", "division-by-zero")
    else:
        assume(math.isfinite(want))
        # Python goes on with an inner value that is infinite.
        assert code_or_value(text) in (want, "not-finite")


def code_or_value(text: str) -> float | str:
    try:
        return value_of(text)
    except ExpressionError as error:
        return error.code


@given(st.lists(st.sampled_from(["1", "2", "3", "+", "-", "*", "/", "//", "%"]), max_size=12))
def test_precedence_without_brackets(words: list[str]) -> None:
    text = " ".join(words)
    try:
        want = eval(text, {"__builtins__": {}})
    except (SyntaxError, ZeroDivisionError, TypeError):
        assert error_of(text).code in ("bad-expression", "division-by-zero")
    else:
        assert value_of(text) == want


@given(st.lists(st.sampled_from(["depth", "zero", "<", "==", "and", "or", "not", "(", ")"])))
def test_precedence_of_tests(words: list[str]) -> None:
    text = " ".join(words)
    try:
        found = value_of(text)
    except ExpressionError:
        return
    assert bool(found) == bool(eval(text, dict(NAMES)))


# Facts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1 + 0.2", 0.1 + 0.2),  # not 0.3
        ("round_to(2.5, 1)", 2),  # half to even
        ("round_to(3.5, 1)", 4),
        ("round_to(0.5, 1)", 0),
        ("round_to(-2.5, 1)", -2),
        ("round_to(64, 128)", 0),
        ("round_to(192, 128)", 256),
        ("round_to(320, 128)", 256),  # 2.5 goes to 2
        ("round_up(1, 256)", 256),
        ("round_up(256, 256)", 256),
        ("round_up(257, 256)", 512),
        ("round_up(floor(8 * 2560 / 3), 256)", 6912),  # MUDDFormer's feed-forward
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("7 // -2", -4),
        ("2 - 3 - 4", -5),
        ("2 / 3 / 4", 2 / 3 / 4),
        ("2 * 3 % 4", 2),
        ("-2 * -3", 6),
        ("--3", 3),
        ("- - + 3", 3),
        ("1 if 0 else 2 if 0 else 3", 3),
        ("1 if depth > 3 and not last else 2", 2),
        ("not depth == 3", True),  # as in Python: not (depth == 3)
        ("1 < 2 and 2 < 3", True),
        ("(1 < 2) + 1", 2),
        ("last * 4", 4),
        ("1e3 + .5 + 5.", 1005.5),
        (" \t1\n+ 2 ", 3),
        ("min(1, 2, 3) + max(1, 2, 3)", 4),
        ("log(1)", 0),
        ("9007199254740993", 9007199254740992),  # a double
        ("zero and 1 / zero", False),  # what is not needed is not computed
        ("1 or 1 / zero", True),
        ("1 if last else 1 / zero", 1),
    ],
)
def test_values(text: str, value: float) -> None:
    assert value_of(text) == value


def test_numbers_are_doubles_and_tests_are_bools() -> None:
    for text in ("1", "1 + 2", "7 // 2", "floor(2.5)", "min(1, 2)", "last + last", "-last"):
        assert type(value_of(text)) is float, text
    for text in ("1 < 2", "not 1", "1 and 2", "last"):
        assert type(value_of(text)) is bool, text


@given(st.floats(1e-3, 1e6), st.floats(0.5, 1e4))
def test_rounding_is_to_a_multiple_nearby(x: float, m: float) -> None:
    down, up = value_of("round_to(x, m)", x=x, m=m), value_of("round_up(x, m)", x=x, m=m)
    assert abs(down - x) <= m / 2 * (1 + 1e-9)
    assert x <= up * (1 + 1e-9)
    assert up < x + m * (1 + 1e-9)


# Refusals, and the characters they point at


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("4 * widht", "unknown-name", "widht"),
        ("1 if last else wdth", "unknown-name", "wdth"),  # a branch that is not taken
        ("round(3)", "unknown-name", "round"),
        ("eval(1)", "unknown-name", "eval"),
        ("width / (depth - 12)", "division-by-zero", "(depth - 12)"),
        ("width // zero + 1", "division-by-zero", "zero"),
        ("width % 0", "division-by-zero", "0"),
        ("round_to(3, zero)", "division-by-zero", "zero"),
        ("1 + sqrt(0 - 4)", "not-finite", "sqrt(0 - 4)"),
        ("log(0) + 1", "not-finite", "log(0)"),
        ("1 + 1e200 * 1e200", "not-finite", "1e200 * 1e200"),
        ("1 / (1e300 * 1e300)", "not-finite", "(1e300 * 1e300)"),
        ("1e999", "not-finite", "1e999"),
        ("4 width", "bad-expression", "width"),
        ("4 *", "bad-expression", ""),
        ("", "bad-expression", ""),
        ("  ", "bad-expression", " "),
        ("()", "bad-expression", ")"),
        ("(1 + 2", "bad-expression", ""),
        ("1 + 2)", "bad-expression", ")"),
        ("max(1 2)", "bad-expression", "2"),
        ("max(1, 2", "bad-expression", ""),
        ("min(1)", "bad-expression", "min(1)"),
        ("floor(1, 2)", "bad-expression", "floor(1, 2)"),
        ("1 if 2", "bad-expression", ""),
        ("if 1 else 2", "bad-expression", "if"),
        ("1 < 2 < 3", "bad-expression", "<"),
        ("1 == 2 != 3", "bad-expression", "!="),
        ("1 < not 2", "bad-expression", "not"),
        ("-not 2", "bad-expression", "not"),
        ("2 ** 3", "bad-expression", "*"),
        ("2 ^ 3", "bad-expression", "^"),
        ("width = 3", "bad-expression", "="),
        ("width.real", "bad-expression", "."),
        ("'a'", "bad-expression", "'"),
        ("[1]", "bad-expression", "["),
        ("a; b", "bad-expression", ";"),
        ("lambda: 1", "bad-expression", ":"),
        ("010", "bad-expression", "010"),
        ("1 + 010", "bad-expression", "010"),
        ("010.5", "bad-expression", "010.5"),
        ("0x10", "bad-expression", "0x10"),
        ("1_000", "bad-expression", "1_000"),
        ("10k", "bad-expression", "10k"),
        ("1e", "bad-expression", "1e"),
        ("٣", "bad-expression", "٣"),
        ("1\u00a0+ 1", "bad-expression", "\u00a0"),
        ("depth\u200b", "bad-expression", "\u200b"),
    ],
)
def test_refusals(text: str, code: str, place: str) -> None:
    assert (error_of(text).code, under(text)) == (code, place)


def test_a_misspelt_name_has_a_hint() -> None:
    error = error_of("4 * widht")
    assert error.nearest == "width"
    assert error.expected == "one of depth, last, layer, ratio, width, zero"
    assert error_of("round_u(3, 4)").nearest == "round_up"


# Limits


def nested(depth: int) -> str:
    return "(" * depth + "1" + ")" * depth


@pytest.mark.parametrize("opening", ["(", "-", "not ", "1 + (", "floor(", "1 if 1 else "])
def test_nesting_has_a_limit(opening: str) -> None:
    closing = ")" * opening.count("(")
    text = opening * 15 + "1" + closing * 15
    assert value_of(text) == eval(text, {"floor": math.floor})
    deep = opening * (MAX_NESTING + 10) + "1" + closing * (MAX_NESTING + 10)
    assert "nested more than 40 levels deep" in error_of(deep).message


def test_length_has_a_limit() -> None:
    longest = " + ".join(["1"] * ((MAX_TOKENS + 1) // 2))
    assert value_of(longest) == (MAX_TOKENS + 1) // 2
    assert "more than 250 numbers, names and signs" in error_of(longest + " + 1").message
    assert "more than 1000 characters" in error_of("1" + " " * MAX_LENGTH + "+ 1").message


@given(st.text("0123456789.e+-*/%()<>=!, abdfhiorlntw", max_size=40) | st.text(max_size=20))
@settings(max_examples=500)
def test_any_text_has_a_value_or_an_error(text: str) -> None:
    try:
        found: float | ExpressionError = value_of(text)
    except ExpressionError as error:
        found = error
    if isinstance(found, ExpressionError):
        assert found.message
        assert 0 <= found.start <= len(text)
        assert found.length >= 1
    else:
        assert math.isfinite(found)


def test_names_of_an_expression() -> None:
    assert parse("min(depth, 3) * (width if last else -ratio) + depth").names() == {
        "depth",
        "width",
        "last",
        "ratio",
    }


def test_every_function_is_compared_with_python() -> None:
    assert set(PYTHON) == set(FUNCTIONS)
