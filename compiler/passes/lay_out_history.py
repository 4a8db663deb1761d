"""Tells each list of hiddens how long it will get, so that a kernel may keep one buffer."""

from __future__ import annotations

from dataclasses import replace

from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.rewrite import Rewriter, Tally
from multiway.compiler.graph.types import History


def lay_out_history(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with the final length as `capacity` of every append."""
    longest: dict[str, int] = {}
    for record in reversed(list(graph)):
        if record.op == "append":
            own = record.outputs[0]
            assert isinstance(own, History)
            later = [longest.get(path, 0) for path, _ in graph.readers(Value(record.path))]
            longest[record.path] = max([own.length, *later])
    told = [path for path, n in longest.items() if graph.record(path).attrs["capacity"] != n]
    if not told:
        return graph
    rewriter = Rewriter(graph)
    for record in graph:
        rewriter.keep(_with_capacity(record, longest.get(record.path, 0)))
    tally.fired += reversed(told)
    return rewriter.finish()


def _with_capacity(record: Record, capacity: int) -> Record:
    if record.op != "append":
        return record
    return replace(record, attrs={**record.attrs, "capacity": capacity})
