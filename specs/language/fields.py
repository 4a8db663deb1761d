"""Declares the language: one frozen dataclass a mapping of the spec, one field a key.

From such a class follow both the JSON Schema that `jsonschema` checks documents with
(reading/schema.py) and the conversion of a checked document into typed values
(reading/convert.py). A key is declared once.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from multiway.specs.errors import MultiwayError, Report, Span
from multiway.specs.text import expressions
from multiway.specs.text.expressions import Expr, ExpressionError
from multiway.specs.text.source import Node

# `$` alone would let a line break pass at the end.
NAME = r"^[a-z][a-z0-9_]*$(?!\n)"
NAME_RULE = "small letters, digits and _, beginning with a letter"

MAX_COUNT = 1e9  # no dimension of a model is larger
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}", re.ASCII)

Count = typing.NewType("Count", int)  # an expression whose value is a whole number >= 1
Offset = typing.NewType("Offset", int)  # the same, >= 0
Real = typing.NewType("Real", float)  # an expression with any finite value
Test = typing.NewType("Test", bool)  # an expression that is true or false


@dataclass(frozen=True, kw_only=True)
class Config:
    """A mapping of the spec. Class variables say which short forms stand for one.

    `short`: the key that a bare string fills in (`norm: rms_norm`). `switch`: `true` stands for the
    empty mapping, `false` for leaving it out. `required`: keys that have no default.
    """

    short: ClassVar[str] = ""
    switch: ClassVar[bool] = False
    required: ClassVar[tuple[str, ...]] = ()

    node: Node = field(repr=False, compare=False)

    def span(self, key: str = "") -> Span:
        """Where `key` is written, or the whole mapping where it is not."""
        if key and (child := self.node.get(key)) is not None:
            return child.span
        return self.node.span

    def check(self, report: Report) -> None:
        """Adds what is wrong with these values alone. Subclasses override."""


def key(doc: str, *, default: Any = None) -> Any:
    """A key of a mapping, with its line of documentation. Each object gets its own default dict."""
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, eq=False)
class Formula:
    """An expression that is evaluated later, when names such as `sources` have values."""

    expr: Expr
    node: Node
    names: Mapping[str, float]

    def number(self, **names: float) -> float:
        return number_at(self.expr, self.node, {**self.names, **names})

    def count(self, **names: float) -> int:
        return whole_number(self.number(**names), self.node, minimum=1)

    def whole(self, **names: float) -> int:
        """A whole number that may be negative."""
        return whole_number(self.number(**names), self.node, minimum=-MAX_COUNT)

    def test(self, **names: float) -> bool:
        if isinstance(self.node.value, bool):
            return self.node.value
        return bool(evaluate_at(self.expr, self.node, {**self.names, **names}))


TAGS = ("kind", "route")  # the keys that choose a class of mapping


class Kinds:
    """A mapping whose `kind:` chooses its class: `Kinds(Learned, Rotary)` in an annotation.

    tag: another key than `kind` that chooses.
    """

    def __init__(self, *classes: type[Config], tag: str = "kind") -> None:
        self.classes, self.tag = {kind_of(cls, tag): cls for cls in classes}, tag
        assert tag in TAGS


def kind_of(cls: type[Config], tag: str = "kind") -> str:
    """The value of the tag that stands for a class: its only Literal."""
    (kind,) = typing.get_args(typing.get_type_hints(cls)[tag])
    return str(kind)


def keys_of(cls: type[Config]) -> dict[str, tuple[Any, str]]:
    """Key name to (annotation, doc), in declared order."""
    return _keys_of(cls)  # type: ignore[arg-type]


@functools.cache
def _keys_of(cls: Any) -> dict[str, tuple[Any, str]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [f for f in dataclasses.fields(cls) if f.name != "node"]
    return {f.name: (hints[f.name], f.metadata.get("doc", "")) for f in fields}


def unwrap(annotation: Any) -> tuple[Any, bool]:
    """An annotation without `| None`, and whether None was in it."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        args = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(args) == 1:
            return args[0], True
        return typing.Union[tuple(args)], True  # noqa: UP007
    return annotation, False


def kinds_in(annotation: Any) -> Kinds | None:
    """The Kinds in `Annotated[A | B, Kinds(A, B)]`, if there is one."""
    if typing.get_origin(annotation) is typing.Annotated:
        found = [m for m in typing.get_args(annotation)[1:] if isinstance(m, Kinds)]
        return found[0] if found else None
    return None


def parse_expression(node: Node) -> Expr:
    """The expression that a scalar holds. Raises MultiwayError at its place."""
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float, str)):
        raise MultiwayError.one(
            "wrong-type",
            f"this is {node.kind()}",
            span=node.span,
            expected="a number, or an expression over dims",
        )
    if isinstance(node.value, str) and not node.quoted and _DATE.fullmatch(node.value):
        raise MultiwayError.one(
            "bad-expression",
            f"{node.value} looks like a date, not like a number",
            span=node.span,
            expected="spaces around the minus signs of a difference",
        )
    try:
        return expressions.parse(str(node.value))
    except ExpressionError as error:
        raise _with_place(error, node) from None


def evaluate_at(expr: Expr, node: Node, names: Mapping[str, float]) -> float:
    """The value of the expression in `node`, which may be a test. Raises MultiwayError there."""
    try:
        return expressions.evaluate(expr, names)
    except ExpressionError as error:
        raise _with_place(error, node) from None


def number_at(expr: Expr, node: Node, names: Mapping[str, float]) -> float:
    """The value of the expression in `node`, a number. Raises MultiwayError at its place."""
    value = evaluate_at(expr, node, names)
    if isinstance(value, bool):
        raise MultiwayError.one(
            "wrong-type",
            "this is true or false, not a number",
            span=node.span,
            expected="a number; `a if test else b` chooses one",
        )
    return value


def _with_place(error: ExpressionError, node: Node) -> MultiwayError:
    """The error at its own characters, where the text stands in the file as it was read."""
    span, text = node.span, str(node.value)
    shift = 1 if node.quoted else 0
    start = span.column - 1 + shift
    if span.text[start : start + len(text)] == text:
        span = span.part(error.start + shift, error.length)
    return MultiwayError.one(
        error.code, error.message, span=span, expected=error.expected, nearest=error.nearest
    )


def whole_number(value: float, node: Node, *, minimum: float) -> int:
    """The value of `node` as an int. Raises MultiwayError at its place where it is none."""
    shown = f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.15g}"
    if value != int(value):
        raise MultiwayError.one(
            "not-whole",
            f"this is {shown}, not a whole number",
            span=node.span,
            expected="a whole number; round_to, round_up, floor and ceil make one",
        )
    if value < minimum:
        raise MultiwayError.one(
            "too-small",
            f"this is {shown}",
            span=node.span,
            expected=f"a whole number of at least {minimum}",
        )
    if value > MAX_COUNT:
        raise MultiwayError.one(
            "absurd-size", f"this is {shown}", span=node.span, expected=f"at most {MAX_COUNT:,.0f}"
        )
    return int(value)
