"""Computes equal subgraphs once."""

from __future__ import annotations

import json
from typing import Any

from multiway.compiler.graph.layer_graph import INPUT, OUTPUT, LayerGraph, Record, Value, block_of
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.rewrite import Rewriter, Tally


def share_common(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with the second of two equal nodes left out. A block does not read from inside
    another block, so that blocks of one layout keep one layout. What draws random numbers equals
    nothing.
    """
    rewriter = Rewriter(graph)
    seen: dict[Any, str] = {}
    for record in graph:
        if record.op in (INPUT, OUTPUT) or registry()[record.op].random:
            rewriter.keep(record)
            continue
        key = _key(rewriter, record)
        first = seen.setdefault(key, record.path)
        if first == record.path or block_of(first) not in ("", block_of(record.path)):
            seen[key] = record.path
            rewriter.keep(record)
            continue
        for port in range(len(record.outputs)):
            rewriter.now[Value(record.path, port)] = Value(first, port)
        tally.fired.append(record.path)
    return rewriter.finish() if tally.fired else graph


def _key(rewriter: Rewriter, record: Record) -> Any:
    reads = rewriter.old.sources(record.path)
    return (
        record.op,
        json.dumps(dict(record.attrs), sort_keys=True),
        tuple(record.params.items()),
        tuple((name, rewriter.now.get(value, value)) for name, value in reads.items()),
    )
