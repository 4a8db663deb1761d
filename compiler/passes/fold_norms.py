"""Moves the gain and bias of a norm into the linears behind it, for inference.

The folded weights are made once, when a model is first run, and again when its weights change. Two
norms of one input are then equal, so that share_common computes one of them, and the linears behind
them read one input and can be packed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from multiway.compiler.fusion import NORMS, Rewriter, Tally
from multiway.compiler.graph import LayerGraph, Record, Value

PASS = "fold_norms"


def fold_norms(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with norms that have neither gain nor bias, where only linears read them."""
    uses = Counter(path for record in graph for path in record.params.values())
    folded: dict[str, Record] = {}  # linear to the norm that goes into it
    for norm in graph:
        if norm.op not in NORMS or not norm.params:
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
    for record in graph:
        if record.path in norms:
            rewriter.keep(replace(record, params={}, passes=(*record.passes, PASS)))
        elif record.path in folded:
            _fold(rewriter, record, folded[record.path])
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


def _fold(rewriter: Rewriter, linear: Record, norm: Record) -> None:
    """A linear whose weight and bias come from nodes that read parameters only."""
    arguments: dict[str, Value] = {"x": rewriter.old.sources(linear.path)["x"]}
    params = dict(linear.params)
    weight = params["weight"]
    if "bias" in norm.params:
        given = {"weight": weight, "shift": norm.params["bias"]}
        if "bias" in params:
            given["bias"] = params.pop("bias")
        shift = Record(path=f"{linear.path}.folded_bias", op="fold_shift", params=given)
        (arguments["bias"],) = rewriter.add(shift, {}, PASS)
    if "weight" in norm.params:
        given = {"weight": params.pop("weight"), "gain": norm.params["weight"]}
        gain = Record(path=f"{linear.path}.folded_weight", op="fold_gain", params=given)
        (arguments["weight"],) = rewriter.add(gain, {}, PASS)
    rewriter.kept.add(linear.path)
    rewriter.add(replace(linear, params=params), arguments, PASS)
