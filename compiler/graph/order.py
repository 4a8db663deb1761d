"""The order of a program: nodes outside of blocks, and blocks as wholes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from multiway.compiler.graph.layer_graph import LayerGraph, Record, block_of


@dataclass
class Step:
    """One node outside of blocks, or a block with its nodes in the order of building."""

    block: str  # empty for a single node
    records: list[Record] = field(default_factory=list)


def steps(graph: LayerGraph) -> list[Step]:
    """Steps in an order in which each follows what it reads, linear in nodes and edges.

    Among those that could come next, the one that was built first does.
    """
    found: dict[str, Step] = {}
    for record in graph:
        block = block_of(record.path)
        found.setdefault(block or record.path, Step(block)).records.append(record)
    rank = {key: i for i, key in enumerate(found)}
    waits: dict[str, set[str]] = {key: set() for key in found}
    followers: dict[str, set[str]] = {key: set() for key in found}
    for record in graph:
        key = block_of(record.path) or record.path
        for value in graph.sources(record.path).values():
            source = block_of(value.path) or value.path
            if source != key:
                waits[key].add(source)
                followers[source].add(key)
    ready = [(rank[key], key) for key, needed in waits.items() if not needed]
    heapq.heapify(ready)
    order = []
    while ready:
        _, key = heapq.heappop(ready)
        order.append(found[key])
        for follower in followers[key]:
            waits[follower].discard(key)
            if not waits[follower]:
                heapq.heappush(ready, (rank[follower], follower))
    assert len(order) == len(found), "two blocks need each other"
    return order
