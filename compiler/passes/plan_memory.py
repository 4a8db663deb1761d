"""Chooses what backward computes again instead of keeping, from bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multiway.compiler.costs import default_sizes, node_flops, type_bytes
from multiway.compiler.fusion import Rewriter, Tally, fuse, fusions
from multiway.compiler.graph import INPUT, OUTPUT, LayerGraph, Value, block_of
from multiway.compiler.op import registry

PASS = "plan_memory"


@dataclass(kw_only=True)
class Kept:
    """What a block keeps for its backward, and what computing it again costs."""

    bytes: int = 0
    flops: float = 0.0


def plan_memory(
    graph: LayerGraph, tally: Tally, budget: int | None, sizes: Mapping[str, int]
) -> LayerGraph:
    """The graph with parts marked for recomputation until what is kept fits the budget.

    First inside fused ops: those whose fusion names this pass keep their inputs only. Then whole
    blocks; those that free most bytes for a FLOP come first, of equal ones the earliest. Without a
    budget nothing is recomputed. What cannot be reached is reached as nearly as it can be.

    sizes: numbers for named sizes. Lengths that are not given count as the longest that is.
    """
    if budget is None or any(record.op == "cache_write" for record in graph):
        return graph  # nothing is trained through a cache
    longest = max((size for name, size in sizes.items() if name != "B"), default=None)
    sizes = {**default_sizes(graph, {}, batch=1, length=longest), **sizes}
    kept = kept_bytes(graph, sizes)
    if sum(each.bytes for each in kept.values()) <= budget:
        return graph
    for fusion in fusions():
        if fusion.by == PASS:
            graph = fuse(graph, fusion, tally)
    kept = kept_bytes(graph, sizes)
    total = sum(each.bytes for each in kept.values())
    # Recomputing frees a block's bytes, but one block's are there again while its backward runs.
    blocks = sorted((k for k in kept if k), key=lambda k: -kept[k].bytes / (kept[k].flops or 1))
    chosen: set[str] = set()
    for block in blocks:
        again = max((kept[b].bytes for b in chosen), default=0)
        if total + again <= budget:
            break
        chosen.add(block)
        total -= kept[block].bytes
    if frozenset(chosen) == graph.recompute:
        return graph
    rewriter = Rewriter(graph)
    for record in graph:
        rewriter.keep(record)
    made = rewriter.finish()
    made.recompute = frozenset(chosen)
    tally.fired += [block for block in kept if block in chosen]
    return made


def kept_bytes(graph: LayerGraph, sizes: Mapping[str, int]) -> dict[str, Kept]:
    """Bytes that autograd keeps and FLOPs, by block; under an empty name what is outside.

    A value counts once, for the block that makes it. What goes from block to block is kept in any
    case and counts as outside.
    """
    found: dict[str, Kept] = {"": Kept()}
    for value in sorted(_saved(graph)):
        record = graph.record(value.path)
        block = block_of(value.path)
        if record.op in (INPUT, "append"):
            continue
        crosses = any(block_of(reader) != block for reader, _ in graph.readers(value))
        key = "" if crosses else block
        found.setdefault(key, Kept()).bytes += type_bytes(graph.type(value), sizes)
    for record in graph:
        if record.op not in (INPUT, OUTPUT) and (block := block_of(record.path)):
            found.setdefault(block, Kept()).flops += node_flops(graph, record, sizes)
    return found


def _saved(graph: LayerGraph) -> set[Value]:
    """Values whose memory some backward needs: views count as what they are views of."""
    found: set[Value] = set()
    for record in graph:
        if record.op in (INPUT, OUTPUT):
            continue
        saves = registry()[record.op].saves
        for argument, value in graph.sources(record.path).items():
            if argument.split(".")[0] in saves:
                found.add(_base(graph, value))
        if "output" in saves:
            found.add(Value(record.path))
    return found


VIEWS = {"split_heads": "x", "merge_heads": "x", "split": "x"}


def _base(graph: LayerGraph, value: Value) -> Value:
    record = graph.record(value.path)
    while record.op in VIEWS:
        value = graph.sources(value.path)[VIEWS[record.op]]
        record = graph.record(value.path)
    return value
