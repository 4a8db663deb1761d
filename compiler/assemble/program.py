"""One program while its nodes are added. It knows no part of a model: parts are built on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from multiway.compiler.graph.layer_graph import (
    INPUT,
    OUTPUT,
    Arguments,
    LayerGraph,
    Param,
    Record,
    Value,
)
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.types import Type
from multiway.specs.language.fields import Config
from multiway.specs.language.parts import ACTIVATIONS
from multiway.specs.spec import Spec


def join(*parts: str) -> str:
    """A path of its non-empty parts."""
    return ".".join(part for part in parts if part)


class Program:
    """Adds nodes to one graph. Parameters are found by path among the declared ones.

    part, of every node: the piece of the spec that it comes from, whose place errors show.
    """

    def __init__(self, spec: Spec, *, name: str, params: Mapping[str, Param]) -> None:
        self.spec = spec
        self.graph = LayerGraph(name=name, params=params)
        self.pass_name = ""

    @contextmanager
    def pass_(self, name: str) -> Iterator[None]:
        """Puts a name before the paths of nodes: several passes read the same parameters."""
        self.pass_name = name
        yield
        self.pass_name = ""

    def name(self, name: str, value: Value) -> None:
        """Gives a value a short name for taps."""
        self.graph.names[join(self.pass_name, name)] = value

    def nodes(
        self,
        path: str,
        op: str,
        arguments: Arguments,
        *,
        attrs: Mapping[str, Any] | None = None,
        params: str | Mapping[str, str] | None = None,
        part: Config | None = None,
    ) -> list[Value]:
        """Adds a node. `params` is the path its parameters stand under (default: its own), or a
        mapping from role to path. Raises MultiwayError for shapes that do not fit."""
        record = registry()[op]
        if isinstance(params, Mapping):
            found = dict(params)
        else:
            base = path if params is None else params
            paths = {role: f"{base}.{role}" for role in record.params}
            found = {role: p for role, p in paths.items() if p in self.graph.params}
        return self.graph.add(
            Record(
                path=join(self.pass_name, path),
                op=op,
                attrs=record.full_attrs(attrs or {}),
                params=found,
                span=part.span() if part is not None else None,
            ),
            arguments,
        )

    def node(self, path: str, op: str, arguments: Arguments, **more: Any) -> Value:
        """Adds a node with one output."""
        (value,) = self.nodes(path, op, arguments, **more)
        return value

    def linear(self, path: str, x: Value, *, part: Config, params: str | None = None) -> Value:
        """A projection, with a bias where one is declared."""
        return self.node(path, "linear", {"x": x}, params=params, part=part)

    def activation(self, path: str, kind: str, x: Value, *, part: Config) -> Value:
        """A function of every element: one that the op `activation` knows, or an op by its name."""
        if kind in ACTIVATIONS:
            return self.node(path, "activation", {"x": x}, attrs={"kind": kind}, part=part)
        return self.node(path, kind, {"x": x}, part=part)

    def input(self, name: str, *types: Type, part: Config | None = None) -> list[Value]:
        """An input of the program; with several types, a list of tensors."""
        span = part.span() if part is not None else None
        attrs = {"list": len(types) > 1}
        record = Record(path=f"inputs.{name}", op=INPUT, attrs=attrs, outputs=types, span=span)
        return self.graph.add(record, {})

    def output(
        self, attrs: Mapping[str, Any] | None = None, /, **values: Value | Sequence[Value]
    ) -> LayerGraph:
        """Ends the program. A list of values comes out as a list, several names as a tuple."""
        self.graph.add(Record(path="outputs", op=OUTPUT, attrs=attrs or {}), values)
        return self.graph
