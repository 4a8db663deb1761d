"""The layer graph: a networkx MultiDiGraph whose nodes are op records.

Only this file touches networkx. What passes ask again and again reads its dictionaries, as its own
algorithms do: views of them take two to three times as long.
A node's key is its spec path. An edge carries the output port it leaves and the argument it enters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import networkx as nx

from multiway.compiler.graph.init import Init
from multiway.compiler.graph.op import Op, Packs
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.signature import ShapeError
from multiway.compiler.graph.types import Shape, Tensor, Type, from_plain, to_plain
from multiway.specs.errors import MultiwayError, Span, nearest, one_of

INPUT = "input"
OUTPUT = "output"


class Value(NamedTuple):
    """An output of a node."""

    path: str
    port: int = 0


Arguments = Mapping[str, Value | Sequence[Value]]
ArgumentTypes = Mapping[str, Type | Sequence[Type]]


@dataclass(frozen=True, kw_only=True)
class Param:
    """A parameter that a spec declares, whether or not a program reads it."""

    path: str
    shape: tuple[int, ...]
    init: Init
    span: Span | None = None
    active: float = 1.0  # the part of it that a token meets: that of its experts
    rate: float | None = None  # by how much a step moves it, if no gradient does (balance_bias)

    @property
    def size(self) -> int:
        total = 1
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True, kw_only=True)
class Record:
    """A node: which op with which attributes, what it puts out, where it comes from."""

    path: str
    op: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[Type, ...] = ()
    span: Span | None = None
    passes: tuple[str, ...] = ()

    @property
    def definition(self) -> Op | None:
        """What its op is; None for the ends of a program, which are no ops."""
        return registry().get(self.op)

    @property
    def is_norm(self) -> bool:
        return self.definition is not None and self.definition.norm

    @property
    def view_of(self) -> str:
        """The argument that its outputs are views of, empty where they are none."""
        return self.definition.view_of if self.definition else ""

    @property
    def packs(self) -> Packs | None:
        return self.definition.packs if self.definition else None


_BLOCK = re.compile(r"(?:\w+\.)?blocks\.\d+(?=\.)")


def block_of(path: str) -> str:
    """The block that a node belongs to, `blocks.3`, or an empty string outside of blocks.

    A program with several passes has their names in front: `image.blocks.3`.
    """
    found = _BLOCK.match(path)
    return found[0] if found else ""


class LayerGraph:
    """One program as a graph. `names` gives short names to values, for taps."""

    # How a notebook shows one. multiway/api.py sets it, because nothing here may import views.
    picture: ClassVar[Callable[[LayerGraph], str] | None] = None

    def __init__(self, *, name: str, params: Mapping[str, Param]) -> None:
        self.nx = nx.MultiDiGraph()
        self.name = name
        self.params = dict(params)
        self.names: dict[str, Value] = {}
        self.recompute: frozenset[str] = frozenset()  # nodes of blocks that backward runs once more
        self.packed: frozenset[str] = frozenset()  # products whose weights are laid out once
        self._places: dict[str, int] = {}  # by path; empty where nodes were added since

    # Building

    def add(self, record: Record, arguments: Arguments) -> list[Value]:
        """Adds a node behind the ones it reads. Its outputs are inferred. Raises MultiwayError."""
        assert record.path not in self.nx, f"two nodes at {record.path}"
        if record.op not in (INPUT, OUTPUT):
            record = dataclasses.replace(record, outputs=self._infer(record, arguments))
        return self.adopt(record, arguments)

    def adopt(self, record: Record, arguments: Arguments) -> list[Value]:
        """Adds a node whose outputs are known already, such as one of another graph."""
        self.nx.add_node(record.path, record=record)
        self._places.clear()
        edges: list[tuple[str, Value]] = []
        for name, given in arguments.items():
            many = [(name, given)] if isinstance(given, Value) else _numbered(name, given)
            edges += many
        for order, (name, value) in enumerate(edges):
            data = {"port": value.port, "argument": name, "order": order}
            self.nx.add_edge(value.path, record.path, key=name, **data)
        return [Value(record.path, port) for port in range(len(record.outputs))]

    def _infer(self, record: Record, arguments: Arguments) -> tuple[Type, ...]:
        op = registry()[record.op]
        types = self.argument_types(record, arguments)
        try:
            return op.types(types, record.attrs)
        except ShapeError as error:
            raise MultiwayError.one(
                "shape",
                f"{record.path} ({op.name}): {error}",
                span=record.span,
                place=self.name,
                notes=(("op", op.signature),),
            ) from None

    def argument_types(self, record: Record, arguments: Arguments) -> ArgumentTypes:
        """The types of everything that a node reads: inputs by edges, and its parameters."""
        types: dict[str, Type | list[Type]] = {}
        for name, given in arguments.items():
            if isinstance(given, Value):
                types[name] = self.type(given)
            else:
                types[name] = [self.type(value) for value in given]
        for role, path in grouped(record.params).items():
            if isinstance(path, str):
                types[role] = Tensor(self.params[path].shape)
            else:
                types[role] = [Tensor(self.params[each].shape) for each in path]
        return types

    # Reading

    def __contains__(self, path: str) -> bool:
        return path in self.nx

    def __len__(self) -> int:
        return len(self.nx)

    def __iter__(self) -> Iterator[Record]:
        """Records in an order in which every node follows what it reads: that of building."""
        for data in self.nx._node.values():
            yield data["record"]

    def before(self, path: str, other: str) -> bool:
        """Whether a node was built before another one."""
        if not self._places:
            self._places.update((each, i) for i, each in enumerate(self.nx._node))
        return self._places[path] < self._places[other]

    def record(self, path: str) -> Record:
        return self.nx._node[path]["record"]  # type: ignore[no-any-return]

    def type(self, value: Value) -> Type:
        return self.record(value.path).outputs[value.port]

    def shape(self, value: Value) -> Shape:
        """The shape of a tensor value."""
        found = self.type(value)
        assert isinstance(found, Tensor)
        return found.shape

    def arguments(self, path: str) -> dict[str, Value | list[Value]]:
        """What a node reads, by argument; an argument that takes many is a list."""
        return grouped(self.sources(path))

    def sources(self, path: str) -> dict[str, Value]:
        """What a node reads, one entry an edge, in order: `x`, `parts.0`, `parts.1`."""
        found = [
            (data["order"], data["argument"], Value(source, data["port"]))
            for source, many in self.nx._pred[path].items()
            for data in many.values()
        ]
        return {argument: value for _, argument, value in sorted(found)}

    def ports_read(self, path: str) -> set[int]:
        """The ports of a node that anything reads, in time that is linear in its edges."""
        return {data["port"] for many in self.nx._succ[path].values() for data in many.values()}

    def readers(self, value: Value) -> list[tuple[str, str]]:
        """(node, argument) of everything that reads a value."""
        return [
            (to, data["argument"])
            for to, many in self.nx._succ[value.path].items()
            for data in many.values()
            if data["port"] == value.port
        ]

    def inputs(self) -> list[Record]:
        return [record for record in self if record.op == INPUT]

    def output(self) -> Record:
        return next(record for record in self if record.op == OUTPUT)

    def resolve(self, name: str) -> Value:
        """The value of a tap: a short name, `path`, or `path:port`. Raises MultiwayError."""
        if name in self.names:
            return self.names[name]
        path, _, port = name.partition(":")
        if path in self.nx and (port or "0").isdecimal():
            value = Value(path, int(port or 0))
            if value.port < len(self.record(path).outputs):
                return value
        raise MultiwayError.one(
            "unknown-tap",
            f"program {self.name!r} has no value {name!r}",
            place="taps",
            expected=f"the path of a node, or {one_of(self.names, limit=6)}",
            nearest=nearest(name, [*self.names, *self.nx]),
        )

    def is_acyclic(self) -> bool:
        return bool(nx.is_directed_acyclic_graph(self.nx))

    def blocks_are_acyclic(self) -> bool:
        """Whether every block can be called on its own: nothing it reads needs what it puts out."""
        whole = nx.DiGraph()
        for source, target in self.nx.edges():
            a, b = block_of(source) or source, block_of(target) or target
            if a != b:
                whole.add_edge(a, b)
        return bool(nx.is_directed_acyclic_graph(whole))

    # Printing

    def __repr__(self) -> str:
        blocks = len({block_of(path) for path in self.nx._node} - {""})
        names = ", ".join(record.path.removeprefix("inputs.") for record in self.inputs())
        size = f"{len(self)} nodes, {blocks} blocks"
        return f"LayerGraph(program {self.name}: {size}, inputs {names or 'none'})"

    def _repr_svg_(self) -> str | None:
        draw = type(self).picture
        return None if draw is None else draw(self)

    def to_json(self) -> dict[str, Any]:
        """The graph as networkx node-link data of plain values. `from_json` is the inverse."""
        plain = nx.MultiDiGraph(name=self.name, names={k: list(v) for k, v in self.names.items()})
        plain.graph["recompute"] = sorted(self.recompute)
        plain.graph["packed"] = sorted(self.packed)
        plain.graph["params"] = [_plain(param) for param in self.params.values()]
        for record in self:
            data = _plain(record)
            data["outputs"] = [to_plain(t) for t in record.outputs]
            plain.add_node(data.pop("path"), **data)
        for path in self.nx:
            for order, (name, value) in enumerate(self.sources(path).items()):
                data = {"port": value.port, "argument": name, "order": order}
                plain.add_edge(value.path, path, key=name, **data)
        made: dict[str, Any] = nx.node_link_data(plain, edges="edges")
        return made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerGraph:
        plain = nx.node_link_graph(data, directed=True, multigraph=True, edges="edges")
        params = [_param(each) for each in plain.graph["params"]]
        graph = cls(name=plain.graph["name"], params={param.path: param for param in params})
        graph.names = {name: Value(*value) for name, value in plain.graph["names"].items()}
        graph.recompute = frozenset(plain.graph["recompute"])
        graph.packed = frozenset(plain.graph["packed"])
        for path, each in plain.nodes(data=True):
            outputs = tuple(from_plain(t) for t in each["outputs"])
            fields = {**each, "outputs": outputs, "passes": tuple(each["passes"])}
            fields["span"] = Span(**each["span"]) if each["span"] else None
            graph.nx.add_node(path, record=Record(path=path, **fields))
        graph.nx.add_edges_from(plain.edges(keys=True, data=True))
        return graph


T = TypeVar("T")


def grouped(numbered: Mapping[str, T]) -> dict[str, T | list[T]]:
    """`x`, `parts.0`, `parts.1` as x and a list parts."""
    found: dict[str, T | list[T]] = {}
    for argument, value in numbered.items():
        name, dot, _ = argument.partition(".")
        if not dot:
            found[name] = value
        else:
            many = found.setdefault(name, [])
            assert isinstance(many, list)
            many.append(value)
    return found


def _numbered(name: str, values: Sequence[Value]) -> list[tuple[str, Value]]:
    return [(f"{name}.{i}", value) for i, value in enumerate(values)]


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: _plain_value(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _param(data: Mapping[str, Any]) -> Param:
    span = Span(**data["span"]) if data["span"] else None
    return Param(
        path=data["path"],
        shape=tuple(data["shape"]),
        init=Init(**data["init"]),
        span=span,
        active=data["active"],
        rate=data["rate"],
    )
