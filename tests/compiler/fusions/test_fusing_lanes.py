"""The fusion of sites of lanes: where it fires, what it leaves alone, and that it is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lanes import BALANCE, Stack, lowered, parameters

from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.graph.verify import verify
from multiway.compiler.pipeline import Options
from multiway.compiler.pipeline import run as run_pipeline
from multiway.runtime.kernels import native

EXP = {**BALANCE, "start": "exp", "transpose": True}
STACKS = {
    "static": Stack(kind="static"),
    "hc": Stack(kind="hc", norm="layer_norm"),
    "hc-norms": Stack(kind="hc", norms=2, raw=True, count=2),
    "frac": Stack(kind="frac", count=2),
    "mhc": Stack(kind="mhc", count=3),
    "mhc-exp": Stack(kind="mhc", count=2, balance=EXP, norm="layer_norm", norms=2),
}


def fused(graph: LayerGraph, **options: Any) -> tuple[LayerGraph, Tally]:
    stage = next(s for s in run_pipeline(graph, Options(**options)) if s.name == "fuse_lanes")
    return stage.graph, stage.tally


def of_op(graph: LayerGraph, op: str) -> list[str]:
    return [record.path for record in graph if record.op == op]


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_every_site_becomes_one_op(name: str, mode: Any) -> None:
    stack = STACKS[name]
    graph, tally = fused(stack.graph(), mode=mode)
    verify(graph)
    last = "blocks.1.site0.write" if stack.kind == "frac" else "output.x"
    reads = ["blocks.0.site0.read", "blocks.0.site1.read", "blocks.1.site0.read", last]
    assert tally.fired == reads == of_op(graph, "fused_lanes")
    assert not tally.refused
    left = {record.op for record in graph}
    gone = {"read_lanes", "mix_lanes", "write_lanes", "write_pieces", "sinkhorn", "lane_gate"}
    assert not left & gone
    assert ("lane_weights" in left) == (stack.kind == "static")
    again, nothing = fused(graph, mode=mode)
    assert again is graph and not nothing.fired


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_fused_sites_are_the_reference(name: str, c: bool, mode: Any) -> None:
    graph = STACKS[name].graph()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    last = run_pipeline(graph, Options(mode=mode))[-1].graph
    for each, kernels in ((graph, False), (last, True)):
        params = parameters(graph)
        module = lowered(each, params, kernels=kernels)
        native.enable(c)
        try:
            given = x.clone().requires_grad_()
            out = module(given)
            leaves = [given, *params.values()] if mode == "train" else [given]
            slopes = torch.autograd.grad(out.square().sum(), leaves)
        finally:
            native.enable(True)
        results.append([out, *slopes])
    names = ["out", "x", *parameters(graph)]
    for label, a, b in zip(names, *results, strict=False):
        torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-10, msg=lambda m, n=label: f"{n}: {m}")
        assert float(a.detach().abs().max()) > 0, label


def test_the_lanes_in_between_are_computed_once() -> None:
    graph, _ = fused(STACKS["mhc"].graph())
    for path in of_op(graph, "fused_lanes")[1:]:
        assert graph.record(path).attrs["ends"] == "lanes"
    assert graph.record("output.x").attrs["kept"] == 0  # nothing reads the last lanes
    assert graph.record("blocks.0.site1.read").attrs["kept"] == 1


@pytest.mark.parametrize(
    ("kind", "tapped", "refused"),
    [
        ("hc", "blocks.0.site1.mix_tanh", "blocks.0.site1.read"),
        ("hc", "blocks.0.site1.lane_norm", "blocks.0.site1.read"),
        ("mhc", "blocks.0.site1.read_gate", "blocks.0.site1.read"),
        ("mhc", "blocks.0.site1.joined", "blocks.0.site1.read"),
    ],
)
def test_a_tapped_value_inside_a_site_is_kept(kind: str, tapped: str, refused: str) -> None:
    graph, tally = fused(Stack(kind=kind, count=2, taps=[tapped]).graph())
    assert tally.refused == {refused: f"{tapped} is also read by outputs"}
    assert tapped in graph
    assert len(tally.fired) == 3


@pytest.mark.parametrize("kind", ["hc", "mhc"])
def test_values_that_a_site_puts_out_may_be_tapped(kind: str) -> None:
    inner = {"hc": "mix_weights", "mhc": "write_gate"}[kind]
    taps = [f"blocks.0.site1.{name}" for name in ("read", inner)] + ["blocks.0.site0.write"]
    built = Stack(kind=kind, count=2, taps=taps).graph()
    graph, tally = fused(built)
    assert len(tally.fired) == 4 and not tally.refused
    params, x = parameters(built), torch.randn(2, 3, 8, dtype=torch.float64)
    found = [lowered(g, params, kernels=k)(x) for g, k in ((built, False), (graph, True))]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_what_is_no_site_is_left_alone() -> None:
    odd = "blocks.0.site1.mix_tanh"
    found, _ = fused(Stack(kind="hc", count=2, odd=odd).graph())
    record = found.record("blocks.0.site1.read")
    assert record.attrs["weights"] == "given"  # weights that are made otherwise are read
    assert odd in found
    assert found.record("blocks.1.site0.read").attrs["weights"] == "tanh"


@pytest.mark.slow
def test_fused_sites_are_compiled_and_exported_whole() -> None:
    graph = Stack(kind="mhc", count=2, sites=2).graph()
    params, x = parameters(graph), torch.randn(2, 5, 8, dtype=torch.float64)
    module = lowered(run_pipeline(graph, Options())[-1].graph, params, kernels=True)
    want = module(x)
    found = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, want)
    leaves = list(params.values())
    slopes = [torch.autograd.grad(y.square().sum(), leaves) for y in (want, found)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(b, a)
    exported = torch.export.export(module, (x,), strict=True)
    torch.testing.assert_close(exported.module()(x), want)
