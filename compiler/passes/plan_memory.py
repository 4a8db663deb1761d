"""Chooses what backward computes again instead of keeping, from bytes and FLOPs."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from multiway.compiler.analysis.costs import default_sizes
from multiway.compiler.analysis.saved import Block, Node, SavedValues
from multiway.compiler.graph.layer_graph import LayerGraph, block_of
from multiway.compiler.graph.rewrite import Rewriter, Tally


@dataclass(kw_only=True)
class SavedBytes:
    """What is kept for backward in a block, or outside of all."""

    bytes: int = 0


def plan_memory(
    graph: LayerGraph, tally: Tally, budget: int | None, sizes: Mapping[str, int]
) -> LayerGraph:
    """The graph with nodes marked for recomputation, so that what is kept fits the budget.

    From the plan that recomputes every block as a whole, nodes are taken out again as far as the
    budget allows: those first that save most FLOPs for a byte, of equal ones the earliest. Without
    a budget nothing is recomputed. What cannot be reached is reached as nearly as it can be.

    sizes: numbers for named sizes. Lengths that are not given count as the longest that is.
    """
    if budget is None or any(record.op == "cache_write" for record in graph):
        return graph  # nothing is trained through a cache
    longest = max((size for name, size in sizes.items() if name != "B"), default=None)
    sizes = {**default_sizes(graph, {}, batch=1, length=longest), **sizes}
    keeping = SavedValues(graph, sizes)
    if keeping.total <= budget:
        return graph
    make_all_again(keeping)
    keep_what_is_dear(keeping, budget)
    chosen = keeping.nodes_again()
    if chosen == graph.recompute:
        return graph
    rewriter = Rewriter(graph)
    for record in graph:
        rewriter.keep(record)
    made = rewriter.finish()
    made.recompute = chosen
    tally.fired += list(dict.fromkeys(block_of(r.path) for r in graph if r.path in chosen))
    return made


def make_all_again(keeping: SavedValues) -> None:
    """Lets every block make all of its nodes again, but those that draw random numbers."""
    for block in keeping.blocks.values():
        if block.name:
            keeping.make_again(block, {node.path for node in block.nodes if not node.random})


def keep_what_is_dear(keeping: SavedValues, budget: int) -> None:
    """Takes nodes out of what is made again, the dearest for a byte first, within the budget.

    What costs no byte is taken out in any case.
    """
    ranks = {n.path: i for i, n in enumerate(_nodes(keeping))}
    changes: dict[str, int] = dict.fromkeys(keeping.blocks, 0)
    heap: list[tuple[float, int, int, Block, Node]] = []

    def offer(block: Block) -> None:
        for node in block.nodes:
            if node.path in block.again:
                held = block.holds(block.again - {node.path}, keeping.crossing)
                price = keeping.growth(block, held)
                worth = node.work / price if price > 0 else float("inf")
                entry = (-worth, ranks[node.path], changes[block.name], block, node)
                heapq.heappush(heap, entry)

    for block in keeping.blocks.values():
        offer(block)
    while heap:
        _, _, change, block, node = heapq.heappop(heap)
        if change != changes[block.name]:
            continue  # the block is another one by now
        before, again = keeping.total, block.again
        keeping.make_again(block, again - {node.path})
        if keeping.total > max(budget, before):
            keeping.make_again(block, again)
            continue
        changes[block.name] += 1
        offer(block)


def _nodes(keeping: SavedValues) -> Iterator[Node]:
    return itertools.chain.from_iterable(block.nodes for block in keeping.blocks.values())


def saved_bytes(graph: LayerGraph, sizes: Mapping[str, int]) -> dict[str, SavedBytes]:
    """Bytes that autograd keeps, by block; under an empty name what is outside.

    A value counts once, for the block that makes it. What goes from block to block is kept in any
    case and counts as outside. What `graph.recompute` makes again does not count.
    """
    keeping = SavedValues(graph, sizes)
    for block in keeping.blocks.values():
        keeping.make_again(block, {n.path for n in block.nodes if n.path in graph.recompute})
    found = {name: SavedBytes() for name in keeping.blocks}
    for value, count in keeping.holders.items():
        if count > 0:
            key = "" if value in keeping.crossing else block_of(value.path)
            found[key].bytes += keeping.bytes[value]
    return found
