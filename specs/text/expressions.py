"""Arithmetic over dims, parsed to a small tree. No `eval`.

Values are IEEE doubles in Python's operation order, because exact fractions would give other widths
than the models that multiway reproduces (`round_to` rounds half to even, as Python's `round` does).
What Python would carry on with, `inf` for instance, is an error here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from multiway.specs.errors import nearest, one_of

MAX_LENGTH = 1000
MAX_TOKENS = 250
MAX_NESTING = 40

FUNCTIONS: dict[str, tuple[int, int, Callable[..., float]]] = {
    "min": (2, 16, lambda *x: float(min(x))),
    "max": (2, 16, lambda *x: float(max(x))),
    "floor": (1, 1, lambda x: float(math.floor(x))),
    "ceil": (1, 1, lambda x: float(math.ceil(x))),
    "round_to": (2, 2, lambda x, m: float(round(x / m) * m)),
    "round_up": (2, 2, lambda x, m: float(math.ceil(x / m) * m)),
    "sqrt": (1, 1, math.sqrt),
    "log": (1, 1, math.log),
}
WORDS = {"if", "else", "and", "or", "not"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?\w*)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>//|<=|>=|==|!=|[-+*/%()<>,]))",
    re.ASCII,
)
_NUMBER = re.compile(r"((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_SPACE = " \t\n\r\f\v"
_NOT, _COMPARISON = 3, 4
_BINDING = {"or": 1, "and": 2, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}
_BINDING |= dict.fromkeys(["<", "<=", ">", ">=", "==", "!="], _COMPARISON)
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: float(a) + float(b),
    "-": lambda a, b: float(a) - float(b),
    "*": lambda a, b: float(a) * float(b),
    "/": lambda a, b: float(a) / float(b),
    "//": lambda a, b: float(a) // float(b),
    "%": lambda a, b: float(a) % float(b),
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
_INSTEAD = {"^": "x * x for a power", "=": "== to compare", "&": "and", "|": "or"}


class ExpressionError(Exception):
    """What is wrong with an expression, and which of its characters say so."""

    def __init__(
        self,
        code: str,
        message: str,
        start: int,
        length: int,
        *,
        expected: str = "",
        like: str = "",
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.expected, self.nearest = code, message, expected, like
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
        message = f"an expression of more than {MAX_LENGTH} characters"
        raise ExpressionError("bad-expression", message, 0, 1)
    parser = _Parser(text)
    tree = parser.conditional(0)
    if parser.peek().text:
        parser.fail(f"{parser.peek().text!r} is not expected here")
    return tree


def evaluate(expr: Expr, names: Mapping[str, float]) -> float:
    """The value of an expression, a finite double or a bool. Raises ExpressionError.

    Every name must be known, also those of a branch that is not taken.
    """
    _check_names(expr, names)
    return _evaluate(expr, names)


def _check_names(expr: Expr, names: Mapping[str, float]) -> None:
    if expr.kind == "name" and str(expr.value) not in names:
        raise ExpressionError(
            "unknown-name",
            f"{expr.value!r} is not known here",
            expr.start,
            expr.length,
            expected=one_of(sorted(names)),
            like=nearest(str(expr.value), names),
        )
    for arg in expr.args:
        _check_names(arg, names)


def _evaluate(expr: Expr, names: Mapping[str, float]) -> float:
    match expr.kind:
        case "number":
            return _finite(expr, float(expr.value))
        case "name":
            value = names[str(expr.value)]
            return value if isinstance(value, bool) else float(value)
        case "negate":
            return -float(_evaluate(expr.args[0], names))
        case "not":
            return not _evaluate(expr.args[0], names)
        case "and":
            return bool(_evaluate(expr.args[0], names)) and bool(_evaluate(expr.args[1], names))
        case "or":
            return bool(_evaluate(expr.args[0], names)) or bool(_evaluate(expr.args[1], names))
        case "if":
            chosen = expr.args[0] if _evaluate(expr.args[1], names) else expr.args[2]
            return _evaluate(chosen, names)
        case kind:
            function = FUNCTIONS[str(expr.value)][2] if kind == "call" else _OPERATORS[kind]
            return _apply(expr, function, [_evaluate(arg, names) for arg in expr.args])


def _apply(expr: Expr, function: Callable[..., float], args: list[float]) -> float:
    try:
        return _finite(expr, function(*args))
    except ZeroDivisionError:
        by = expr.args[-1]
        raise ExpressionError("division-by-zero", "division by zero", by.start, by.length) from None
    except (OverflowError, ValueError):
        raise _not_finite(expr) from None


def _finite(expr: Expr, value: float) -> float:
    if not math.isfinite(value):
        raise _not_finite(expr)
    return value


def _not_finite(expr: Expr) -> ExpressionError:
    return ExpressionError("not-finite", "this is not a finite number", expr.start, expr.length)


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
        tokens: list[_Token] = []
        at, end = 0, len(self.text.rstrip(_SPACE))
        while at < end:
            match = _TOKEN.match(self.text, at)
            if not match:
                self.refuse(at)
            kind = str(match.lastgroup)
            tokens.append(_number_checked(_Token(kind, match[kind], match.start(kind))))
            at = match.end()
        if len(tokens) > MAX_TOKENS:
            message = f"an expression of more than {MAX_TOKENS} numbers, names and signs"
            raise ExpressionError("bad-expression", message, 0, 1)
        return [*tokens, _Token("end", "", end)]

    def refuse(self, at: int) -> NoReturn:
        at += len(self.text[at:]) - len(self.text[at:].lstrip(_SPACE))
        character = self.text[at]
        message = f"{character!r} cannot stand in an expression"
        raise ExpressionError(
            "bad-expression", message, at, 1, expected=_INSTEAD.get(character, "")
        )

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

    def fail(self, message: str, *, expected: str = "") -> NoReturn:
        token = self.peek()
        length = len(token.text) or 1
        raise ExpressionError("bad-expression", message, token.start, length, expected=expected)

    def conditional(self, depth: int) -> Expr:
        if depth > MAX_NESTING:
            self.fail(f"nested more than {MAX_NESTING} levels deep")
        first = self.binary(0, depth)
        if not self.accept("if"):
            return first
        test = self.binary(0, depth)
        if not self.accept("else"):
            self.fail("the 'else' of this 'if' is missing", expected="a if condition else b")
        return self.node("if", (first, test, self.conditional(depth + 1)))

    def binary(self, level: int, depth: int) -> Expr:
        left, compared = self.unary(level, depth), False
        while (binding := _BINDING.get(self.peek().text, 0)) > level:
            if compared and binding == _COMPARISON:
                self.fail("comparisons do not chain", expected="a < b and b < c")
            compared = binding == _COMPARISON
            operator = self.take().text
            right = self.binary(binding, depth + 1)
            left = self.node(operator, (left, right))
        return left

    def unary(self, level: int, depth: int) -> Expr:
        token = self.peek()
        if depth > MAX_NESTING:
            self.fail(f"nested more than {MAX_NESTING} levels deep")
        if token.text not in ("-", "+", "not"):
            return self.atom(depth)
        if token.text == "not" and level > _NOT:
            self.fail("'not' needs brackets here", expected="(not ...)")
        self.take()
        inner = self.binary(_NOT, depth + 1) if token.text == "not" else self.unary(9, depth + 1)
        if token.text == "+":
            return inner
        kind = "negate" if token.text == "-" else "not"
        return Expr(kind, 0.0, (inner,), token.start, inner.start + inner.length - token.start)

    def atom(self, depth: int) -> Expr:
        token = self.peek()
        if token.kind == "number":
            self.take()
            return Expr("number", float(token.text), (), token.start, len(token.text))
        if token.kind == "name" and token.text not in WORDS:
            self.take()
            if self.accept("("):
                return self.call(token, depth)
            return Expr("name", token.text, (), token.start, len(token.text))
        if not self.accept("("):
            early = "the expression ends too early" if self.position else "an expression is missing"
            self.fail(f"{token.text!r} is not expected here" if token.text else early)
        inner = self.conditional(depth + 1)
        length = self.closed() - token.start
        return dataclasses.replace(inner, start=token.start, length=length)

    def call(self, name: _Token, depth: int) -> Expr:
        if name.text not in FUNCTIONS:
            raise ExpressionError(
                "unknown-name",
                f"{name.text!r} is not a function",
                name.start,
                len(name.text),
                expected=one_of(FUNCTIONS),
                like=nearest(name.text, FUNCTIONS),
            )
        args = [self.conditional(depth + 1)]
        while self.accept(","):
            args.append(self.conditional(depth + 1))
        length = self.closed() - name.start
        low, high, _ = FUNCTIONS[name.text]
        if not low <= len(args) <= high:
            count = str(low) if low == high else f"{low} to {high}"
            message = (
                f"{name.text} takes {count} {'number' if high == 1 else 'numbers'}, not {len(args)}"
            )
            raise ExpressionError("bad-expression", message, name.start, length)
        return Expr("call", name.text, tuple(args), name.start, length)

    def closed(self) -> int:
        """Takes the ')' that must stand here; the place behind it."""
        end = self.peek().start + 1
        if not self.accept(")"):
            self.fail("a ')' is missing here")
        return end

    def node(self, kind: str, args: tuple[Expr, ...]) -> Expr:
        start = min(arg.start for arg in args)
        stop = max(arg.start + arg.length for arg in args)
        return Expr(kind, 0.0, args, start, stop - start)


def _number_checked(token: _Token) -> _Token:
    """Refuses what other languages read as another number, or not as one: 010, 0x10, 1_000, 10k."""
    if token.kind == "number" and not _NUMBER.fullmatch(token.text):
        raise ExpressionError(
            "bad-expression",
            f"{token.text!r} is not a number",
            token.start,
            len(token.text),
            expected="digits without zeros in front, as in 16, 0.5 or 1e-5",
        )
    return token
