"""Arithmetic over dims, parsed to a small tree. No `eval`.

Values are IEEE doubles in Python's operation order, because exact fractions would give other widths than the models
that multiway reproduces (`round_to` rounds half to even, as Python's `round` does).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from multiway.specs.errors import one_of

MAX_LENGTH = 1000
MAX_NESTING = 40

FUNCTIONS: dict[str, tuple[int, int, Callable[..., float]]] = {
    "min": (1, 16, min),
    "max": (1, 16, max),
    "floor": (1, 1, lambda x: float(math.floor(x))),
    "ceil": (1, 1, lambda x: float(math.ceil(x))),
    "round_to": (2, 2, lambda x, m: round(x / m) * m),
    "round_up": (2, 2, lambda x, m: math.ceil(x / m) * m),
    "sqrt": (1, 1, math.sqrt),
    "log": (1, 1, math.log),
}
_WORDS = {"if", "else", "and", "or", "not"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>//|<=|>=|==|!=|[-+*/%()<>,]))"
)
_BINDING = {"or": 1, "and": 2, "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 4, "!=": 4}
_BINDING |= {"+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


class ExpressionError(Exception):
    """What is wrong with an expression, and which of its characters say so."""

    def __init__(
        self, code: str, message: str, start: int, length: int, expected: str = ""
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.expected = code, message, expected
        self.start, self.length = start, length


@dataclass(frozen=True)
class Expr:
    """A node of the tree: `kind` is number, name, call, not, negate, if, or an operator."""

    kind: str
    value: float | str = 0.0
    args: tuple[Expr, ...] = ()
    start: int = 0
    length: int = 1

    def names(self) -> frozenset[str]:
        """Every name that the expression reads."""
        own = {str(self.value)} if self.kind == "name" else set()
        return frozenset(own.union(*(arg.names() for arg in self.args)))


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Parses an expression. Raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError("bad-expression", f"longer than {MAX_LENGTH} characters", 0, 1)
    parser = _Parser(text)
    tree = parser.conditional(0)
    if parser.peek().text:
        parser.fail(f"{parser.peek().text!r} is not expected here")
    return tree


def evaluate(expr: Expr, names: Mapping[str, float]) -> float:
    """The value of an expression, a finite double or a bool. Raises ExpressionError."""
    try:
        value = _evaluate(expr, names)
    except ZeroDivisionError:
        raise ExpressionError(
            "division-by-zero", "division by zero", expr.start, expr.length
        ) from None
    except (OverflowError, ValueError):
        raise ExpressionError(
            "bad-expression", "has no finite real value", expr.start, expr.length
        ) from None
    if not math.isfinite(value):
        raise ExpressionError("bad-expression", "has no finite value", expr.start, expr.length)
    return value


def _evaluate(expr: Expr, names: Mapping[str, float]) -> float:
    match expr.kind:
        case "number":
            return float(expr.value)
        case "name":
            return _lookup(expr, names)
        case "call":
            return FUNCTIONS[str(expr.value)][2](*(_evaluate(arg, names) for arg in expr.args))
        case "negate":
            return -_evaluate(expr.args[0], names)
        case "not":
            return not _evaluate(expr.args[0], names)
        case "and":
            return bool(_evaluate(expr.args[0], names)) and bool(_evaluate(expr.args[1], names))
        case "or":
            return bool(_evaluate(expr.args[0], names)) or bool(_evaluate(expr.args[1], names))
        case "if":
            chosen = expr.args[0] if _evaluate(expr.args[1], names) else expr.args[2]
            return _evaluate(chosen, names)
        case operator:
            left, right = (_evaluate(arg, names) for arg in expr.args)
            return _OPERATORS[operator](left, right)


def _lookup(expr: Expr, names: Mapping[str, float]) -> float:
    name = str(expr.value)
    if name not in names:
        raise ExpressionError(
            "unknown-name",
            f"{name!r} is not known here",
            expr.start,
            expr.length,
            one_of(sorted(names)),
        )
    value = names[name]
    return value if isinstance(value, bool) else float(value)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Precedence climbing; one method for each level that is not a plain binary operator."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self.scan()
        self.position = 0

    def scan(self) -> list[_Token]:
        tokens, at = [], 0
        end = len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            if not match:
                skipped = len(self.text[at:]) - len(self.text[at:].lstrip())
                character = self.text[at + skipped]
                raise ExpressionError(
                    "bad-expression",
                    f"{character!r} cannot stand in an expression",
                    at + skipped,
                    1,
                )
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match.group(kind), match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "", end)]

    def peek(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.tokens[self.position]
        self.position = min(self.position + 1, len(self.tokens) - 1)
        return token

    def accept(self, text: str) -> bool:
        if self.peek().text == text:
            self.take()
            return True
        return False

    def fail(self, message: str) -> None:
        token = self.peek()
        raise ExpressionError("bad-expression", message, token.start, len(token.text) or 1)

    def conditional(self, depth: int) -> Expr:
        if depth > MAX_NESTING:
            self.fail(f"nested more than {MAX_NESTING} levels deep")
        first = self.binary(0, depth)
        if not self.accept("if"):
            return first
        test = self.binary(0, depth)
        if not self.accept("else"):
            self.fail("'a if condition else b' needs its else")
        return self.node("if", (first, test, self.conditional(depth + 1)))

    def binary(self, level: int, depth: int) -> Expr:
        left = self.unary(depth)
        while (binding := _BINDING.get(self.peek().text, 0)) > level:
            operator = self.take().text
            right = self.binary(binding, depth + 1)
            left = self.node(operator, (left, right))
        return left

    def unary(self, depth: int) -> Expr:
        token = self.peek()
        if depth > MAX_NESTING:
            self.fail(f"nested more than {MAX_NESTING} levels deep")
        if token.text in ("-", "+", "not"):
            self.take()
            inner = self.binary(3, depth + 1) if token.text == "not" else self.unary(depth + 1)
            kind = {"-": "negate", "not": "not"}.get(token.text)
            if kind is None:
                return inner
            return Expr(kind, 0.0, (inner,), token.start, inner.start + inner.length - token.start)
        return self.atom(depth)

    def atom(self, depth: int) -> Expr:
        token = self.peek()
        if token.kind == "number":
            self.take()
            return Expr("number", float(token.text), (), token.start, len(token.text))
        if token.kind == "name" and token.text not in _WORDS:
            self.take()
            if self.accept("("):
                return self.call(token, depth)
            return Expr("name", token.text, (), token.start, len(token.text))
        if self.accept("("):
            inner = self.conditional(depth + 1)
            if not self.accept(")"):
                self.fail("a ')' is missing")
            return inner
        self.fail(
            f"{token.text!r} is not expected here"
            if token.text
            else "the expression ends too early"
        )
        raise AssertionError

    def call(self, name: _Token, depth: int) -> Expr:
        if name.text not in FUNCTIONS:
            raise ExpressionError(
                "unknown-name",
                f"{name.text!r} is not a function",
                name.start,
                len(name.text),
                one_of(FUNCTIONS),
            )
        args = [self.conditional(depth + 1)]
        while self.accept(","):
            args.append(self.conditional(depth + 1))
        end = self.peek()
        if not self.accept(")"):
            self.fail("a ')' is missing")
        low, high, _ = FUNCTIONS[name.text]
        if not low <= len(args) <= high:
            count = str(low) if low == high else f"{low} to {high}"
            message = f"{name.text} takes {count} numbers, not {len(args)}"
            raise ExpressionError("bad-expression", message, name.start, len(name.text))
        return Expr("call", name.text, tuple(args), name.start, end.start + 1 - name.start)

    def node(self, kind: str, args: tuple[Expr, ...]) -> Expr:
        start = min(arg.start for arg in args)
        stop = max(arg.start + arg.length for arg in args)
        return Expr(kind, 0.0, args, start, stop - start)
