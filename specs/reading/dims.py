"""The values of dims, which may read one another in any order."""

from __future__ import annotations

from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter

from multiway.specs.errors import MultiwayError, Report
from multiway.specs.language.document import RESERVED
from multiway.specs.language.fields import MAX_COUNT, Count, number_at, parse_expression
from multiway.specs.reading.convert import Reader
from multiway.specs.text.expressions import FUNCTIONS, WORDS, Expr
from multiway.specs.text.source import Node

MAX_BLOCKS = 4096  # of a model


def values_of_dims(node: Node, report: Report) -> dict[str, float]:
    """The values of all dims, which may be written in any order. Whole ones are ints."""
    values: dict[str, float] = {}
    trees = {name: _dim_expression(name, node, report) for name in node.value}
    reads = {
        name: {other for other in sorted(tree.names()) if other in node.value} if tree else set()
        for name, tree in trees.items()
    }
    known = dict.fromkeys(node.value, 0.0)
    for name in _in_order(reads, node):
        tree, unread = trees[name], any(other not in values for other in reads[name])
        if tree is None or unread or report.full:
            continue  # said already, of this dim or of one that it reads
        del known[name]
        try:
            value = number_at(tree, node[name], known)
            values[name] = int(value) if value == int(value) else value
        except MultiwayError as error:
            report.extend(error)
        known[name] = values.get(name, 0.0)
    _check_basic_dims(node, values, report)
    return values


def _dim_expression(name: str, node: Node, report: Report) -> Expr | None:
    if name in RESERVED or name in FUNCTIONS or name in WORDS:
        message = f"a dim cannot be called {name!r}, which has a meaning of its own"
        report.add("bad-name", message, span=node.key_span(name), expected="another name")
    try:
        return parse_expression(node[name])
    except MultiwayError as error:
        report.extend(error)
        return None


def _in_order(reads: Mapping[str, Set[str]], node: Node) -> list[str]:
    """Names behind those that they read. Raises MultiwayError where they go in a circle."""
    try:
        return list(TopologicalSorter(reads).static_order())
    except CycleError as error:
        circle = error.args[1][::-1]
        start = circle.index(next(name for name in reads if name in circle))
        names = [*circle[start:-1], *circle[:start], circle[start]]
        raise MultiwayError.one(
            "cyclic-dims",
            f"these dims go in a circle: {' -> '.join(names)}",
            span=node[names[0]].span,
            expected="a number somewhere on the way",
        ) from None


def _check_basic_dims(node: Node, values: Mapping[str, float], report: Report) -> None:
    for name, most in (("depth", MAX_BLOCKS), ("width", int(MAX_COUNT))):
        if name not in node.value:
            message = f"dims needs {name!r}"
            report.add("missing-key", message, span=node.span, expected=f"{name}: 12, for instance")
        if name not in values:
            continue
        count = Reader(values, report).guarded(Count, node[name], name)
        if count is not None and count > most:
            message, expected = f"this is {count:,} blocks", f"at most {most:,}"
            report.add("absurd-size", message, span=node[name].span, expected=expected)
