"""Moves the gain and bias of a norm into the linears behind it, for inference.

The folded weights are made once, when a model is first run, and again when its weights change. Two
norms of one input are then equal, so that share_common computes one of them, and the linears behind
them read one input and can be packed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value, block_of
from multiway.compiler.graph.rewrite import Rewriter, Tally

PASS = "fold_norms"


def fold_norms(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with norms that have neither gain nor bias, where only linears read them."""
    uses = Counter(path for record in graph for path in record.params.values())
    folded: dict[str, Record] = {}  # linear to the norm that goes into it
    for norm in graph:
        if not norm.is_norm or not norm.params:
            continue
        if reason := _refusal(graph, norm, uses):
            tally.refused[norm.path] = reason
            continue
        tally.fired.append(norm.path)
        folded |= {path: norm for path, _ in graph.readers(Value(norm.path))}
    if not folded:
        return graph
    rewriter = Rewriter(graph)
    norms = {norm.path for norm in folded.values()}
    waiting: dict[str, list[str]] = {}  # by the block of the norm
    for path, norm in folded.items():
        waiting.setdefault(block_of(norm.path), []).append(path)
    made: dict[str, dict[str, Value]] = {}
    for record in graph:
        if record.path in norms:
            # All of a block stand in front of its first norm: one node may read several of them.
            for path in waiting.pop(block_of(record.path), ()):
                made[path] = _folded(rewriter, graph.record(path), folded[path])
            rewriter.keep(replace(record, params={}, passes=(*record.passes, PASS)))
        elif record.path in made:
            rewriter.kept.add(record.path)
            arguments = {**graph.sources(record.path), **made[record.path]}
            left = {role: p for role, p in record.params.items() if role not in arguments}
            rewriter.add(replace(record, params=left), arguments, PASS)
        else:
            rewriter.keep(record)
    return rewriter.finish()


def _refusal(graph: LayerGraph, norm: Record, uses: Counter[str]) -> str:
    """Why a norm cannot be folded, or nothing."""
    for path, argument in graph.readers(Value(norm.path)):
        reader = graph.record(path)
        if reader.op != "linear" or argument != "x":
            return f"{path} ({reader.op}) reads it too"
        weight = reader.params.get("weight")
        if weight is None or uses[weight] > 1:
            return f"the weight of {path} has another reader"
    return ""


def _folded(rewriter: Rewriter, linear: Record, norm: Record) -> dict[str, Value]:
    """Weight and bias of a linear behind a norm, from nodes that read parameters only."""
    weight, found = linear.params["weight"], {}
    if "bias" in norm.params:
        given = {"weight": weight, "shift": norm.params["bias"]}
        if "bias" in linear.params:
            given["bias"] = linear.params["bias"]
        shift = Record(path=f"{linear.path}.folded_bias", op="fold_shift", params=given)
        (found["bias"],) = rewriter.add(shift, {}, PASS)
    if "weight" in norm.params:
        given = {"weight": weight, "gain": norm.params["weight"]}
        gain = Record(path=f"{linear.path}.folded_weight", op="fold_gain", params=given)
        (found["weight"],) = rewriter.add(gain, {}, PASS)
    return found
