"""Passes of one's own, as docs/adding_a_fusion.md shows them."""

from __future__ import annotations

from dataclasses import replace

from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.graph.rewrite import Rewriter, Tally
from multiway.compiler.passes.plan_memory import saved_bytes
from multiway.compiler.pipeline import Options, Pass


def tanh_gelu(graph: LayerGraph, tally: Tally, options: Options) -> LayerGraph:
    """The graph with gelu by tanh in the place of the one by erf."""
    rewriter = Rewriter(graph)
    for record in graph:
        if record.op == "activation" and record.attrs["kind"] == "gelu":
            record = replace(record, attrs={**record.attrs, "kind": "gelu_tanh"})
            tally.fired.append(record.path)
        rewriter.keep(record)
    return rewriter.finish() if tally.fired else graph


TANH_GELU = Pass(
    name="tanh_gelu",
    does="gelu by tanh instead of erf",
    numerics="approx",
    run=tanh_gelu,
    before="fuse_mix",
)


def count_saved(graph: LayerGraph, tally: Tally, options: Options) -> LayerGraph:
    """Counts what a training step saves for its backward, at the sizes of the options."""
    blocks = saved_bytes(graph, options.sizes)
    tally.numbers["MiB saved"] = sum(block.bytes for block in blocks.values()) / 2**20
    return graph


COUNT_SAVED = Pass(
    name="count_saved",
    does="counts what backward needs",
    kind="analysis",
    run=count_saved,
    before="plan_memory",
)
