"""What a program costs: parameters, FLOPs and bytes by part, from the layer graph alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiway.compiler.graph.composed import trace
from multiway.compiler.graph.layer_graph import INPUT, OUTPUT, ArgumentTypes, LayerGraph, Record
from multiway.compiler.graph.op import Op
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.types import History, Sizes, Sym, Tensor, Type, number

_BYTES = {"float": 4, "int": 8, "bool": 1}
WIRED = {"history", "mix", "edges", "lanes", "residual"}  # names in paths of a wiring
PARTS = ("embed", "attention", "ffn", "wiring", "output", "heads", "other")


@dataclass(kw_only=True)
class Cost:
    """Costs of a part. Bytes are those of float32."""

    parameters: int = 0  # declared
    active: int = 0  # read by the program
    flops: float = 0.0  # multiply and add count as two
    activation_bytes: int = 0  # everything that nodes put out

    def add(self, other: Cost) -> None:
        self.parameters += other.parameters
        self.active += other.active
        self.flops += other.flops
        self.activation_bytes += other.activation_bytes

    @property
    def weight_bytes(self) -> int:
        return 4 * self.parameters


def part_of(path: str) -> str:
    """The part that a node or parameter counts towards."""
    names = path.split(".")
    if WIRED & set(names):
        return "wiring"
    if "blocks" in names[:2]:
        rest = names[names.index("blocks") + 2 :]
        return rest[0] if rest and rest[0] in PARTS else "other"
    return next((part for part in ("embed", "output", "heads") if part in names[:2]), "other")


def costs(graph: LayerGraph, sizes: Mapping[str, int]) -> dict[str, Cost]:
    """Costs by part. `sizes` gives a number for every named size, e.g. {"B": 1, "T": 2048}."""
    found = {part: Cost() for part in PARTS}
    for param in graph.params.values():
        found[part_of(param.path)].parameters += param.size
    read = {path for record in graph for path in record.params.values()}
    for path in read:
        found[part_of(path)].active += round(graph.params[path].size * graph.params[path].active)
    for record in graph:
        if record.op in (INPUT, OUTPUT):
            continue
        cost = found[part_of(record.path)]
        cost.flops += node_flops(graph, record, sizes)
        if record.definition is not None and record.definition.memory != "list":
            cost.activation_bytes += sum(type_bytes(t, sizes) for t in record.outputs)
    return {part: cost for part, cost in found.items() if cost != Cost()}


def total(parts: Mapping[str, Cost]) -> Cost:
    whole = Cost()
    for cost in parts.values():
        whole.add(cost)
    return whole


def node_flops(graph: LayerGraph, record: Record, sizes: Mapping[str, int]) -> float:
    """FLOPs of one node: from its op's own formula, or the small graph that it stands for.

    Of experts those count that a token goes to, as if it went to no others.
    """
    types = graph.argument_types(record, graph.arguments(record.path))
    active = min((graph.params[path].active for path in record.params.values()), default=1.0)
    return active * _flops(registry()[record.op], types, record.attrs, sizes)


def _flops(
    op: Op, types: ArgumentTypes, attrs: Mapping[str, Any], sizes: Mapping[str, int]
) -> float:
    if op.composed:
        steps = trace(op, types, attrs).steps
        return sum(_flops(registry()[each.op], each.types, each.attrs, sizes) for each in steps)
    letters = {}
    for letter, value in op.sizes(types, attrs).items():
        if letter == "*":
            letters[letter] = math.prod(number(d, sizes) for d in value)
        elif isinstance(value, (int, Sym)):
            letters[letter] = number(value, sizes)
    return op.flops(letters)


def type_bytes(kind: Type, sizes: Mapping[str, int]) -> int:
    """Bytes of a value in float32."""
    match kind:
        case Tensor(shape, dtype):
            return math.prod(number(d, sizes) for d in shape) * _BYTES[dtype]
        case History(length, shape):
            return length * math.prod(number(d, sizes) for d in shape) * _BYTES["float"]
        case Sizes():
            return 0


def moved_bytes(graph: LayerGraph, sizes: Mapping[str, int]) -> int:
    """Bytes that all nodes read and write, in float32, if each reads its inputs once."""
    return sum(node_moved_bytes(graph, record, sizes) for record in graph)


def node_moved_bytes(graph: LayerGraph, record: Record, sizes: Mapping[str, int]) -> int:
    """Bytes that one node reads and writes, in float32, parameters included. Nothing for what is
    made once.
    """
    if record.definition is None or not record.definition.moves_memory:
        return 0
    types = graph.argument_types(record, graph.arguments(record.path)).values()
    return sum(
        type_bytes(each, sizes)
        for kind in [*types, *record.outputs]
        for each in ([kind] if isinstance(kind, Type) else kind)
    )


def products(graph: LayerGraph) -> int:
    """How many matrix products a program makes, attention's own not counted."""
    found = 0
    for record in graph:
        if record.definition is not None:
            types = graph.argument_types(record, graph.arguments(record.path))
            found += _products(record.definition, types, record.attrs)
    return found


def _products(op: Op, types: ArgumentTypes, attrs: Mapping[str, Any]) -> int:
    if op.products is not None or not op.composed:
        return op.products or 0
    steps = trace(op, types, attrs).steps
    return sum(_products(registry()[each.op], each.types, each.attrs) for each in steps)


def default_sizes(
    graph: LayerGraph, limits: Mapping[str, int], *, batch: int, length: int | None
) -> dict[str, int]:
    """Numbers for the named sizes of a graph: the batch, and lengths at their limit or `length`."""
    names = {
        name: None  # in the order in which they are met
        for record in graph
        for kind in record.outputs
        for dim in (kind.dims if isinstance(kind, Sizes) else kind.shape)
        if isinstance(dim, Sym)
        for name, _ in dim.terms
    }
    longest = length or max(limits.values(), default=0) or 512
    found = {name: limits.get(name, longest) if length is None else length for name in names}
    return {**found, "B": batch}
