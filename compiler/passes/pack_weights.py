"""Marks the products whose weights an inference program lays out once, as libraries read them."""

from __future__ import annotations

from multiway.compiler.graph.layer_graph import LayerGraph, Record
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.rewrite import Rewriter, Tally


def pack_weights(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with those nodes marked whose weights are parameters, or made of such once."""
    chosen = [record.path for record in graph if record.packs and _lasts(graph, record)]
    if set(chosen) == graph.packed:
        return graph
    rewriter = Rewriter(graph)
    for record in graph:
        rewriter.keep(record)
    made = rewriter.finish()
    made.packed = frozenset(chosen)
    tally.fired += chosen
    return made


def _lasts(graph: LayerGraph, record: Record) -> bool:
    """Whether the weights of a node are the same in every call."""
    given = [
        value for name, value in graph.sources(record.path).items() if name.startswith("weight")
    ]
    return all(registry()[graph.record(value.path).op].once for value in given)
