"""Functions with one mistake each, made from the source of a right one.

Each mistake is one that a reader could overlook: an operator, a constant, a branch, an argument or
a call that is another one than it should be, or that is missing.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import setitem
from typing import Any

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
PAIRS = (
    ("amax", "amin"),
    ("any", "all"),
    ("cos", "sin"),
    ("cumsum", "cumprod"),
    ("log_softmax", "softmax"),
    ("max", "min"),
    ("rsqrt", "sqrt"),
    ("sum", "mean"),
    ("tril", "triu"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
)
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
# What numbers do not show: types of floats, kinds of lists, and on which device they are.
UNSEEN_CALLS, UNSEEN_KEYWORDS = {"wide", "to", "promote_types", "list", "tuple"}, {"device"}
SYMMETRIC = {"transpose"}  # in its arguments


@dataclass(frozen=True)
class Mutant:
    """A function with one mistake, and the line that it stands in."""

    line: str
    function: Callable[..., Any]


def mutants(function: Callable[..., Any]) -> Iterator[Mutant]:
    """`function` with every mistake, one at a time. Constants of its module (in capitals) that it
    reads are part of it."""
    tree = _definition(function)
    right = ast.unparse(tree)
    names = dict(function.__globals__)  # type: ignore[attr-defined]
    for make, undo in _places(tree):
        make()
        text = ast.unparse(tree)
        undo()
        if text != right:
            exec(compile(text, f"<a mutant of {function.__name__}>", "exec"), names)
            yield Mutant(_first_other_line(text, right), names[function.__name__])


def _definition(function: Callable[..., Any]) -> ast.Module:
    """The definition of a function, behind the constants that it reads."""
    file = ast.parse(inspect.getsource(inspect.getmodule(function.__code__)))  # type: ignore
    body = [n for n in file.body if isinstance(n, ast.FunctionDef) and n.name == function.__name__]
    read = {node.id for node in ast.walk(body[0]) if isinstance(node, ast.Name)}
    constants = [
        node
        for node in file.body
        if isinstance(node, ast.Assign)
        and {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)} & read
    ]
    return _Bare().visit(ast.Module([*constants, *body], []))


class _Bare(ast.NodeTransformer):
    """Takes away what no mistake can be seen in: types of variables, and the defaults of keyword
    arguments, which are all given."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.args.kw_defaults = [None] * len(node.args.kwonlyargs)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        assert node.value is not None
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def _places(tree: ast.Module) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What makes each mistake in a tree, and what takes it back."""
    for parent in list(ast.walk(tree)):
        for name, child in ast.iter_fields(parent):
            if isinstance(child, list):
                for i, each in enumerate(child):
                    for other in _mistakes(each):
                        yield partial(setitem, child, i, other), partial(setitem, child, i, each)
            else:
                for other in _mistakes(child):
                    yield (
                        partial(setattr, parent, name, other),
                        partial(setattr, parent, name, child),
                    )


def _first_other_line(text: str, right: str) -> str:
    pairs = zip(text.splitlines(), right.splitlines(), strict=False)
    return next(line for line, other in pairs if line != other).strip()


def _mistakes(node: Any) -> Iterator[Any]:
    """What could stand in the place of a node by mistake."""
    if type(node) in OPERATORS:
        yield OPERATORS[type(node)]()
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _other_constants(node.value))
    elif isinstance(node, (ast.IfExp, ast.If)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) > 1:
        if isinstance(node.ctx, ast.Load):
            yield _with(node, elts=node.elts[::-1])
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)


def _other_constants(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case float():
            return [2 * value or 1.0]
        case str():
            return [f"not {value}"]
    return []


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    """The call with another function, its first two arguments exchanged, without a keyword
    argument, and what it is called on in its place."""
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
    if called in UNSEEN_CALLS:
        return
    if isinstance(function, ast.Attribute) and called in NAMES:
        yield _with(node, func=_with(function, attr=NAMES[called]))
    if len(node.args) > 1 and called not in SYMMETRIC:
        yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    for keyword in node.keywords:
        if keyword.arg not in UNSEEN_KEYWORDS:
            yield _with(node, keywords=[each for each in node.keywords if each is not keyword])
    if isinstance(function, ast.Attribute):
        yield function.value
    if node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]


def _with(node: ast.AST, **fields: Any) -> Any:
    """A copy of a node with some other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other
