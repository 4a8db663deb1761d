"""Memory plans: what backward makes again, within which budget, and with the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused import assert_equal, gradients, heads, outputs, pair, settings
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_inputs, specs
from test_properties import some_sizes

import multiway as mw
from multiway.compiler.analysis.costs import node_flops
from multiway.compiler.analysis.saved import SavedValues
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.layer_graph import LayerGraph, block_of
from multiway.compiler.passes.plan_memory import saved_bytes
from multiway.compiler.pipeline import Options
from multiway.compiler.pipeline import run as run_pipeline
from multiway.runtime.measure.times import peak_live_bytes

Mappings = dict[str, Any]


def test_recomputed_blocks_give_the_same_gradients_and_keep_less() -> None:
    spec = mw.load("mudd-pythia-test", set={"depth": 6})
    graph = mw.build(spec, program="loss")
    sizes = {"B": 4, "T": 32}
    given = random_inputs(graph, sizes)
    budget = {"memory_budget": 0, "sizes": sizes}
    assert_equal(spec, "loss", given, **budget)
    peaks = []
    for options in ({}, budget):
        model = mw.compile(spec, dtype=torch.float64, **options)
        runs = lambda model=model: model.run("loss", **given)[0].backward()  # noqa: E731
        runs()  # gradients are there from now on
        peaks.append(peak_live_bytes(runs))
    assert peaks[1] < 0.6 * peaks[0]


def graph_planned(graph: LayerGraph, budget: int, sizes: Mappings) -> LayerGraph:
    return run_pipeline(graph, Options(memory_budget=budget, sizes=sizes))[-1].graph


def bytes_of(graph: LayerGraph, sizes: Mappings) -> int:
    return sum(each.bytes for each in saved_bytes(graph, sizes).values())


def keeping(graph: LayerGraph, sizes: Mappings) -> SavedValues:
    """What is kept by the plan of a graph."""
    found = SavedValues(graph, sizes)
    for block in found.blocks.values():
        found.make_again(block, {n.path for n in block.nodes if n.path in graph.recompute})
    return found


def blocks_again(graph: LayerGraph) -> set[str]:
    return {block_of(path) for path in graph.recompute}


def test_a_budget_that_is_met_recomputes_nothing() -> None:
    sizes = {"B": 2, "T": 8}
    graph = mw.build(mw.load("pythia-test", set={"depth": 4}), program="loss")
    total = bytes_of(graph_planned(graph, 2**40, sizes), sizes)
    # While backward is in a block, what it makes again is there: one block alone frees nothing.
    for budget, count in ((total, 0), (total - 1, 2), (0, 4)):
        assert len(blocks_again(graph_planned(graph, budget, sizes))) == count


@pytest.mark.parametrize("name", ["pythia-test", "mudd-pythia-test"])
def test_a_plan_fits_where_one_can_and_costs_less_the_more_it_may_keep(name: str) -> None:
    sizes = {"B": 2, "T": 32}
    graph = mw.build(mw.load(name, set={"depth": 6}), program="loss")
    most = bytes_of(graph_planned(graph, 2**40, sizes), sizes)
    least = bytes_of(graph_planned(graph, 0, sizes), sizes)
    flops = []
    for share in (0.3, 0.5, 0.7, 0.9):
        budget = int(least + share * (most - least))
        stages = run_pipeline(graph, Options(memory_budget=budget, sizes=sizes))
        planned = next(stage.graph for stage in stages if stage.name == "plan_memory")
        assert budget * 0.95 < keeping(planned, sizes).total <= budget
        made = stages[-1].graph  # activations are fused behind the plan, and keep fewer bytes
        assert budget * 0.8 < keeping(made, sizes).total <= budget
        assert keeping(made, sizes).kept == bytes_of(made, sizes)
        flops.append(sum(node_flops(made, r, sizes) for r in made if r.path in made.recompute))
    assert flops == sorted(flops, reverse=True)
    assert flops[0] > flops[-1]


def test_attention_is_kept_before_what_is_cheaper_to_make_again() -> None:
    sizes = {"B": 1, "T": 64}
    graph = mw.build("pythia-test", program="loss")
    least = bytes_of(graph_planned(graph, 0, sizes), sizes)
    most = bytes_of(graph_planned(graph, 2**40, sizes), sizes)
    again = [
        {path.removeprefix("blocks.0.") for path in graph_planned(graph, budget, sizes).recompute}
        for budget in range(least, most, (most - least) // 40)
    ]
    first = {
        name: next(i for i, nodes in enumerate(again) if name not in nodes)
        for name in ("hidden", "attention.core", "attention.query_rotary", "ffn.activation")
    }
    assert first["hidden"] == 0, "the last products of a block cost no byte"
    assert 0 < first["attention.core"] < first["ffn.activation"]
    assert first["attention.core"] < first["attention.query_rotary"]


def test_what_is_random_is_not_made_again() -> None:
    """It would draw other numbers."""
    experts = {"route": "top_k", "count": 3, "k": 2, "router": {"jitter": 0.1}}
    spec = mw.load("pythia-test", set={"block.ffn.experts": experts})
    made = graph_planned(mw.build(spec, program="loss"), 0, {"B": 2, "T": 8})
    random = {record.path for record in made if record.op == "jitter"}
    assert random and made.recompute and not random & set(made.recompute)


@given(specs(), st.integers(1, 5), st.floats(0, 1))
@settings(20)
def test_a_plan_changes_no_bit(spec: Mappings, length: int, share: float) -> None:
    for each in heads(spec):
        if "loss" not in program_names(each):
            continue
        graph = mw.build(each, program="loss")
        sizes = some_sizes(graph, length)
        plain = run_pipeline(graph, Options(sizes=sizes))[-1].graph
        budget = int(share * bytes_of(plain, sizes))
        given, results = random_inputs(graph, sizes), []
        for options in ({}, {"memory_budget": budget, "sizes": sizes}):
            model = pair(each, **options)[1]
            found = outputs(model, "loss", given)
            results.append([*found, *gradients(model, found).values()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
