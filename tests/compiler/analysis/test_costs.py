"""Parameters, FLOPs and bytes, against counts made by hand and against the model itself."""

from __future__ import annotations

from typing import Any

import pytest

import multiway as mw
from multiway.compiler.analysis.costs import Cost, costs, default_sizes, node_flops, part_of, total
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.layer_graph import INPUT, OUTPUT
from multiway.zoo import catalogue

B, T, D, H, K, F, V, L = 2, 5, 12, 3, 1, 20, 7, 2
E = D // H
PLAIN: dict[str, Any] = {
    "multiway": 1,
    "name": "plain",
    "dims": {"depth": L, "width": D},
    "inputs": {"tokens": {"modality": "text", "vocab": V}},
    "block": {
        "norm": {"kind": "rms_norm", "eps": 1e-5},
        "attention": {"heads": H, "kv_heads": K, "mask": "causal", "bias": True},
        "ffn": {"hidden": F, "gate": True, "activation": "silu"},
    },
    "output": {"norm": "rms_norm"},
    "heads": {"lm": {"kind": "causal_lm"}},
}
SIZES = {"B": B, "T": T}


def cost_of(spec: Any, **more: Any) -> dict[str, Cost]:
    return costs(mw.build(spec, **more), SIZES)


def test_flops_are_those_counted_by_hand() -> None:
    found = cost_of(PLAIN)
    tokens = B * T
    norm, add = 5 * tokens * D, tokens * D
    projections = 2 * tokens * D * (D + 2 * K * E + D)
    scores = 2 * (2 * B * H * T * T * E)
    assert found["attention"].flops == L * (norm + projections + scores + add)
    gate = 8 * tokens * F + tokens * F
    assert found["ffn"].flops == L * (norm + 3 * 2 * tokens * D * F + gate)
    assert found["heads"].flops == 2 * tokens * D * V
    assert found["output"].flops == norm
    assert found["other"].flops == L * add
    assert found["embed"].flops == 0


def test_linear_layers_cost_two_flops_a_weight_and_token() -> None:
    graph = mw.build(PLAIN)
    linears = [record for record in graph if record.op == "linear"]
    assert len(linears) == 7 * L + 1
    for record in linears:
        weight = graph.params[record.params["weight"]].size
        assert node_flops(graph, record, SIZES) == 2 * B * T * weight


@pytest.mark.parametrize("k", [1, 2])
def test_of_experts_those_count_that_a_token_goes_to(k: int) -> None:
    experts = {"route": "top_k", "count": 4, "k": k}
    graph = mw.build(
        {**PLAIN, "block": {**PLAIN["block"], "ffn": {"hidden": F, "experts": experts}}}
    )
    up = graph.record("blocks.0.ffn.up")
    assert node_flops(graph, up, SIZES) == k * 2 * B * T * D * F


def test_bytes_are_those_of_float32() -> None:
    found = cost_of(PLAIN)
    assert found["embed"].activation_bytes == 4 * B * T * D
    assert found["heads"].activation_bytes == 4 * B * T * V
    assert found["heads"].weight_bytes == 4 * V * D
    norms = 4 * B * T * D
    assert found["output"].activation_bytes == norms


@pytest.mark.parametrize("name", [n for n in catalogue().names if n.endswith("-test")])
def test_parameters_are_those_of_the_model(name: str) -> None:
    for head in mw.load(name).heads:
        spec = mw.load(name).for_head(head)
        model = mw.compile(spec)
        for program in program_names(spec):
            graph = mw.build(spec, program=program)
            whole = total(costs(graph, default_sizes(graph, {}, batch=2, length=6)))
            assert whole.parameters == sum(p.numel() for p in model.parameters())
            assert 0 < whole.active <= whole.parameters
            assert whole.flops > 0


def test_active_parameters_leave_out_the_way_that_is_not_read() -> None:
    spec = mw.load("beit3-test")
    graph = mw.build(spec, head="features", program="forward_image")
    params = graph.params
    vision = {p for p in params if ".vision." in p}
    language = {p for p in params if ".text." in p}
    # Two of the patches, the mask token and cls on the one side, one table on the other.
    assert len(vision) - len(language) == 4 - 1
    active = total(costs(graph, {"B": 1})).active
    assert active == sum(p.size for path, p in params.items() if path not in language)
    both = mw.build(spec, head="features")
    assert total(costs(both, {"B": 1, "T": 4})).active == sum(p.size for p in params.values())


def test_costs_grow_with_the_sizes_they_should() -> None:
    graph = mw.build(PLAIN)

    def flops(**sizes: int) -> dict[str, float]:
        return {part: cost.flops for part, cost in costs(graph, SIZES | sizes).items()}

    assert flops(B=2 * B) == {part: 2 * count for part, count in flops().items()}
    assert flops(T=2 * T)["ffn"] == 2 * flops()["ffn"]
    assert flops(T=2 * T)["attention"] > 2 * flops()["attention"]


def test_every_node_counts_towards_one_part() -> None:
    graph = mw.build("mudd-pythia-test")
    parts = {r.path: part_of(r.path) for r in graph if r.op not in (INPUT, OUTPUT)}
    assert parts["blocks.2.mix.sum"] == "wiring"
    assert parts["output.mix.sum"] == "wiring"
    assert parts["history.3"] == "wiring"
    assert parts["blocks.1.attention.core"] == "attention"
    assert parts["blocks.1.ffn.norm"] == "ffn"
    assert parts["blocks.1.hidden"] == "other"
    assert parts["rotary.table"] == "other"
    assert part_of("image.blocks.1.ffn.up.vision") == "ffn"
    assert part_of("image.heads.retrieval.pool") == "heads"
    assert part_of("text.embed.text.tokens") == "embed"


def test_sizes_without_a_limit_take_the_longest_there_is() -> None:
    graph = mw.build("beit3-test", head="features")
    assert default_sizes(graph, {"T": 62}, batch=3, length=None) == {"B": 3, "T": 62}
    assert default_sizes(graph, {"T": 62}, batch=3, length=9) == {"B": 3, "T": 9}
    assert default_sizes(graph, {}, batch=1, length=None)["T"] == 512
