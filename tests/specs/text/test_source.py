"""YAML in, values with places out; what YAML 1.1 would turn into something else does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from multiway.specs.errors import MultiwayError, Report, Span, nearest, one_of
from multiway.specs.text.source import MAX_DEPTH, Node, parse, parse_value, scalar

# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("12", 12), ("-3", -3), ("+7", 7), ("0", 0), ("-0", 0)),
        *(("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("-1.5", -1.5)),
        *(("1e-5", 1e-5), ("1E5", 1e5), ("1.0e-05", 1e-5), ("2e3", 2000.0), ("1e+2", 100.0)),
        *(("true", True), ("false", False), ("null", None), ("~", None), ("", None)),
    ],
)
def test_numbers_and_words(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("no", "yes", "on", "off", "y", "n", "True", "TRUE", "False", "Null", "NULL"),
        *("010", "0x10", "0o10", "0b1", "1_000", "1:30", "190:20:30", "00", "-010"),
        *("2024-11-12", "2024-11-12 10:00:00", ".inf", "-.inf", ".nan", "1e999", "inf", "nan"),
        *("1e", "e5", "1.5.2", "1,000", "٣", "１２", "=", "<<", "9" * 40, "1e99999"),
    ],
)
def test_what_is_no_number_stays_a_text(text: str) -> None:
    assert scalar(text) == text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20))
def test_a_number_that_yaml_writes_is_read_back(value: float) -> None:
    (line,) = yaml.safe_dump([value], default_flow_style=True).splitlines()
    read = parse_value(line, file="x")
    assert read is not None
    assert read.plain() == [value]
    assert math.copysign(1, read.plain()[0]) == math.copysign(1, value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(PLAIN)
@settings(max_examples=300)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    text = yaml.safe_dump({"value": value})
    assert parse(text, file="x").plain() == {"value": value}


def test_quotes_make_texts() -> None:
    node = parse("{a: '12', b: \"true\", c: '~', d: 'no'}", file="x")
    assert node.plain() == {"a": "12", "b": "true", "c": "~", "d": "no"}
    assert all(child.quoted for child in node.value.values())
    assert not parse("{a: 12}", file="x")["a"].quoted


def test_block_texts_and_byte_order_marks() -> None:
    node = parse("\ufeffa: |\n  one\n  two\nb: >-\n  three\n  four\n", file="x")
    assert node.plain() == {"a": "one\ntwo\n", "b": "three four"}


def test_keys_are_texts() -> None:
    assert parse("{1: a, no: b, 1e-5: c, ~: d}", file="x").plain() == {
        "1": "a",
        "no": "b",
        "1e-5": "c",
        "~": "d",
    }


def test_aliases_stand_for_their_anchor() -> None:
    node = parse("a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]", file="x")
    assert node.plain()["c"] == [{"x": [1, 2]}] * 2
    assert node["a"].size == 4  # the mapping, the list, and its two numbers
    assert node.size == 4 * 4 + 2
    assert node.depth == 5


def test_a_merge_key_is_a_key() -> None:
    assert "<<" in parse("a: &a {x: 1}\nb: {<<: *a}", file="x")["b"].value


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH])
def test_depth_limit(depth: int) -> None:
    text = "a: " + "[" * depth + "]" * depth  # the mapping is a level too
    if depth < MAX_DEPTH:
        assert parse(text, file="x").depth == MAX_DEPTH
    else:
        with pytest.raises(MultiwayError, match="too-deep"):
            parse(text, file="x")


# Places


def place(node: Node) -> str:
    """The characters that a caret stands under."""
    span = node.span
    return span.text[span.column - 1 : span.column - 1 + span.length]


def test_a_scalar_stands_where_it_is_written() -> None:
    node = parse("a: 4 * width   # why\nb:\n  - one\n  - 'two'\n", file="x.yaml")
    assert place(node["a"]) == "4 * width"
    assert str(node["a"].span) == "x.yaml:1:4"
    assert [place(item) for item in node["b"].value] == ["one", "'two'"]
    assert str(node["b"].value[1].span) == "x.yaml:4:5"


def test_a_mapping_or_list_stands_at_its_key() -> None:
    node = parse("attention:\n  heads: 4\nffn: {hidden: 3}\nlist: [1]\n", file="x")
    assert [place(node[key]) for key in node.value] == ["attention", "ffn", "list"]
    key = node["ffn"].key_span("hidden")
    assert (key.line, key.column, key.length) == (3, 7, 6)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85", "\u2028"])
def test_lines_end_where_yaml_ends_them(end: str) -> None:
    node = parse(f"a: 1{end}b: 2{end}c: three{end}", file="x")
    assert str(node["c"].span) == "x:3:4"
    assert place(node["c"]) == "three"


@given(st.dictionaries(st.text("abc", min_size=1), st.text("xyz é𝔞中", min_size=1), min_size=1))
def test_places_in_any_text(values: dict[str, str]) -> None:
    text = "".join(f'{name}: "{value}"\n' for name, value in values.items())
    node = parse(text, file="x")
    for name, child in node.value.items():
        assert place(child) == f'"{values[name]}"'
        assert node.key_span(name).text == child.span.text


# How problems look


def rendered(text: str, column: int, length: int) -> list[str]:
    report = Report()
    report.add("code", "message", span=Span("f", 3, column, length, text))
    return report.problems[0].render().splitlines()[1:]


def test_a_caret_is_as_long_as_what_is_wrong() -> None:
    assert rendered("key: value", 6, 5) == ["    3 | key: value", "      |      ^^^^^"]
    assert rendered("key: value", 11, 1) == ["    3 | key: value", "      |           ^"]
    assert rendered("key: value", 6, 500) == ["    3 | key: value", "      |      ^^^^^"]


def test_a_caret_stands_under_wide_and_combined_letters() -> None:
    # Two columns for each of the first two letters, none for the accent behind the e.
    assert rendered("中文: x", 5, 1)[1] == "      |       ^"
    assert rendered("e\u0301: x", 5, 1)[1] == "      |    ^"


def test_a_long_line_is_cut_around_the_place() -> None:
    line, marks = rendered("a" * 500 + "WRONG" + "b" * 500, 501, 5)
    assert len(line) < 120
    assert line[marks.index("^") : len(marks)] == "WRONG"


def test_what_cannot_be_seen_is_a_dot() -> None:
    line, _ = rendered("a\tb\u202ec\x1b[31m", 1, 1)
    assert line == "    3 | a·b·c·[31m"


def test_a_name_cannot_act_on_the_terminal() -> None:
    report = Report()
    report.add("code", "no \x1b[2J", place="a\u202eb.yaml", expected="c\td", notes=(("n", "\x7f"),))
    assert report.problems[0].render().splitlines() == [
        r"a\u202eb.yaml: error[code]: no \x1b[2J",
        r"  expected: c\td",
        r"  n:        \x7f",
    ]


def test_a_report_says_nothing_twice_and_ends_at_twenty() -> None:
    report = Report()
    for i in range(50):
        report.add("code", f"message {i // 2}", place="x")
    assert [p.message for p in report.problems] == [f"message {i}" for i in range(20)]
    assert report.full
    with pytest.raises(MultiwayError) as found:
        report.raise_if_any()
    assert str(found.value).count("error[code]") == 20


def test_an_empty_report_raises_nothing() -> None:
    Report().raise_if_any()


def test_hints() -> None:
    assert nearest("activaton", ["hidden", "activation"]) == "activation"
    assert nearest("xyz", ["hidden", "activation"]) == ""
    assert one_of(["a"]) == "a"
    assert one_of("abc", limit=2) == "one of a, b, and 1 more"
