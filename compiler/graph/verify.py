"""Whether a layer graph is well formed. A failure here is a defect of ours, not of the user's."""

from __future__ import annotations

from multiway.compiler.graph.layer_graph import INPUT, OUTPUT, LayerGraph, grouped
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.signature import ShapeError


class VerificationError(AssertionError):
    """A graph that a pass or the builder should not have made."""


def verify(graph: LayerGraph) -> None:
    """Checks edges, order, parameters, and infers every shape again."""
    _require(graph.is_acyclic(), "the graph has a cycle")
    outputs = [record.path for record in graph if record.op == OUTPUT]
    _require(len(outputs) == 1, f"{len(outputs)} outputs")
    seen: set[str] = set()
    for record in graph:
        _check_edges(graph, record.path, seen)
        if record.op not in (INPUT, OUTPUT):
            _check_node(graph, record.path)
        seen.add(record.path)
    _require(graph.blocks_are_acyclic(), "two blocks need each other")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise VerificationError(message)


def _check_edges(graph: LayerGraph, path: str, seen: set[str]) -> None:
    for target, value in graph.sources(path).items():
        _require(value.path in seen, f"{path}.{target} reads {value.path}, which comes later")
        count = len(graph.record(value.path).outputs)
        _require(0 <= value.port < count, f"{path}.{target} reads port {value.port} of {count}")


def _check_node(graph: LayerGraph, path: str) -> None:
    record = graph.record(path)
    op = registry()[record.op]
    arguments = graph.arguments(path)
    known = {slot.name for slot in op.parsed.inputs} - set(grouped(record.params))
    _require(arguments.keys() <= known, f"{path}: {record.op} takes no {set(arguments) - known}")
    for role, param in record.params.items():
        _require(param in graph.params, f"{path}: no parameter {param}")
        name = role.partition(".")[0]
        _require(name in op.params, f"{path}: {record.op} has no parameter {role}")
    try:
        again = op.types(graph.argument_types(record, arguments), record.attrs)
    except ShapeError as error:
        raise VerificationError(f"{path}: {error}") from None
    _require(again == record.outputs, f"{path}: outputs {record.outputs}, inferred {again}")
