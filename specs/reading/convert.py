"""Converts nodes that the schema has accepted into typed values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from multiway.specs.errors import MultiwayError, Report, one_of
from multiway.specs.language.block import Block
from multiway.specs.language.fields import (
    Config,
    Count,
    Formula,
    Kinds,
    Offset,
    Real,
    Test,
    evaluate_at,
    keys_of,
    kinds_in,
    number_at,
    parse_expression,
    unwrap,
    whole_number,
)
from multiway.specs.language.parts import Activation
from multiway.specs.reading.merge import merge, strip
from multiway.specs.text.source import Node

C = TypeVar("C", bound=Config)


class Names(Mapping[str, float]):
    """Values of names, which remembers whether `layer` was read.

    A block that never reads it is the same in every layer and is converted once.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)
        self.read_layer = False

    def __getitem__(self, name: str) -> float:
        self.read_layer |= name == "layer"
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Reader:
    """Converts nodes that the schema has accepted into Config objects, collecting problems.

    Nodes are in their full form (full_form.py). `name` is what messages call a mapping.
    """

    def __init__(self, names: Mapping[str, float], report: Report) -> None:
        self.names, self.report = names, report
        self.failures = 0  # the report cannot tell: it says nothing twice and is full at some point

    def config(self, cls: type[C], node: Node, name: str) -> C | None:
        """An object of `cls`, or None when the mapping is switched off or something is wrong."""
        if not isinstance(node.value, dict):
            return None
        before, values = self.failures, {}
        for key, (annotation, doc) in keys_of(cls).items():
            child, failures = node.get(key), self.failures
            if child is not None:
                values[key] = self.guarded(annotation, child, key)
            off = values.get(key) is None and failures == self.failures
            if key in cls.required and off:
                self.missing(f"{name} needs {key!r}", child or node, f"{key}: {doc}")
        if self.failures > before:
            return None
        made = cls(node=node, **values)
        made.check(self.report)
        return made

    def missing(self, message: str, node: Node, expected: str) -> None:
        self.failures += 1
        self.report.add("missing-key", message, span=node.span, expected=expected)

    def guarded(self, annotation: Any, node: Node, name: str) -> Any:
        try:
            return self.convert(annotation, node, name)
        except MultiwayError as error:
            self.failures += 1
            self.report.extend(error)
            return None

    def convert(self, annotation: Any, node: Node, name: str) -> Any:
        annotation, optional = unwrap(annotation)
        if node.value is None and optional:
            return None
        if (kinds := kinds_in(annotation)) is not None:
            return self.kinds(kinds, node, name)
        origin = typing.get_origin(annotation)
        if origin is tuple:
            return self.items(typing.get_args(annotation)[0], node, name)
        if origin is dict:
            inner = typing.get_args(annotation)[1]
            children = node.value.items()
            return {key: self.guarded(inner, child, f"{name}.{key}") for key, child in children}
        if isinstance(annotation, type) and issubclass(annotation, Config):
            return self.config(annotation, node, name)
        return self.leaf(annotation, node)

    def items(self, annotation: Any, node: Node, name: str) -> tuple[Any, ...]:
        """The items of a list. A name that stands twice in one would mean nothing."""
        items: list[Any] = []
        for child in node.value:
            item = self.convert(annotation, child, name)
            if isinstance(item, str) and item.isidentifier() and item in items:
                message = f"{child.kind()} stands twice in {name}"
                raise MultiwayError.one("duplicate-value", message, span=child.span)
            items.append(item)
        return tuple(items)

    def leaf(self, annotation: Any, node: Node) -> Any:
        if annotation is Formula:
            return Formula(parse_expression(node), node, dict(self.names))
        if annotation is Count:
            return whole_number(self.number(node), node, minimum=1)
        if annotation is Offset:
            return whole_number(self.number(node), node, minimum=0)
        if annotation is Real:
            return self.number(node)
        if annotation is Test:
            if isinstance(node.value, bool):
                return node.value
            return bool(evaluate_at(parse_expression(node), node, self.names))
        if annotation in (str, Activation):
            return str(node.value)
        assert annotation is bool or annotation is int or _is_literal(annotation), annotation
        return node.value

    def kinds(self, kinds: Kinds, node: Node, name: str) -> Any:
        if node.value is False:
            return None
        kind = node.get(kinds.tag)
        if kind is None:
            expected = f"{kinds.tag}: {one_of(kinds.classes)}"
            self.missing(f"{name} needs {kinds.tag!r}", node, expected)
            return None
        return self.config(kinds.classes[kind.value], node, name)

    def number(self, node: Node) -> float:
        return number_at(parse_expression(node), node, self.names)


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


def blocks_of(tree: Node, dims: Mapping[str, float], report: Report) -> tuple[Block, ...]:
    """One Block a layer; layers that no expression tells apart share one object."""
    overrides = tree.get("layers")
    _check_overrides(overrides, report)
    blocks: list[Block] = []
    for layer in range(int(dims["depth"])):
        names, found = Names({**dims, "layer": layer}), Report()
        node = tree["block"]
        for override in overrides.value if overrides else ():
            node = _with_override(node, override, names, found)
        block = Reader(names, found).config(Block, node, "block")
        layers_differ = bool(overrides) or names.read_layer
        if block is None or found.problems:
            # One layer is enough: the others are wrong in the same way.
            note = (("layer", str(layer)),) if layers_differ else ()
            for problem in found.problems:
                report.keep(dataclasses.replace(problem, notes=(*problem.notes, *note)))
            return ()
        if not layers_differ:
            return (block,) * int(dims["depth"])
        blocks.append(block)
    return tuple(blocks)


def _check_overrides(overrides: Node | None, report: Report) -> None:
    for override in overrides.value if overrides else ():
        if override.get("where") is None:
            report.add(
                "missing-key",
                "a change of layers needs 'where'",
                span=override.span,
                expected="where: a test, e.g. layer >= depth - 3",
            )


def _with_override(node: Node, override: Node, names: Names, report: Report) -> Node:
    where = override.get("where")
    if where is None or not Reader(names, report).guarded(Test, where, "where"):
        return node
    change = {name: child for name, child in override.value.items() if name != "where"}
    return strip(merge(node, dataclasses.replace(override, value=change)))
