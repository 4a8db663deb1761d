"""Drops nodes that no output depends on."""

from __future__ import annotations

from multiway.compiler.graph.layer_graph import INPUT, LayerGraph
from multiway.compiler.graph.rewrite import Rewriter, Tally


def drop_dead(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph without nodes that no output needs. Inputs stay: callers give them in order.

    Parameters stay declared, so that saved files do not depend on what a program reads.
    """
    alive = {graph.output().path, *(record.path for record in graph.inputs())}
    waiting = list(alive)
    while waiting:
        for value in graph.sources(waiting.pop()).values():
            if value.path not in alive:
                alive.add(value.path)
                waiting.append(value.path)
    if len(alive) == len(graph):
        return graph
    rewriter = Rewriter(graph)
    for record in graph:
        if record.path in alive:
            rewriter.keep(record)
        else:
            assert record.op != INPUT
            tally.fired.append(record.path)
    return rewriter.finish()
