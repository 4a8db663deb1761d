"""Attention over depth: the ops against the formula written as einsums, and recorded values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multiway.compiler.graph.init import ONES
from multiway.compiler.graph.layer_graph import LayerGraph, Param, Record, Value
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.graph.types import Tensor as Kind
from multiway.compiler.graph.types import sym
from multiway.compiler.graph.verify import VerificationError, verify
from multiway.compiler.lowering.containers import empty_parameters
from multiway.compiler.lowering.lower import lower
from multiway.compiler.matching.match import fuse, fusions
from multiway.compiler.passes.lay_out_history import lay_out_history
from multiway.compiler.pipeline import PIPELINE, Options

double = torch.float64
GOLDEN = Path(__file__).parents[4] / "shared" / "golden_wirings" / "attnres" / "full"


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=double)


def op(name: str, *args: Any, **kwargs: Any) -> Any:
    return registry()[name].reference(*args, **kwargs)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def routed(stack: Tensor, query: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Weights [B, T, G, L] and their average [B, T, D] of stack [L, B, T, D], as einsums."""
    length = stack.norm(dim=-1, keepdim=True) / stack.shape[-1] ** 0.5
    scale = torch.hypot(length, torch.full_like(length, eps**0.5))
    unit = (stack / scale).unflatten(-1, (groups, -1))
    scores = torch.einsum("lbtge,ge->btgl", unit, query.view(groups, -1))
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    parts = stack.unflatten(-1, (groups, -1))
    return weights, torch.einsum("btgl,lbtge->btge", weights, parts).flatten(-2)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_router_is_a_softmax_over_scores_of_normalised_sources(
    groups: int, weighted: bool
) -> None:
    history = [random(2, 3, 12, seed=i) * (1 + i) for i in range(5)]
    query, weight = random(12, seed=7), random(12, seed=8) if weighted else None
    whole = query * weight if weight is not None else query
    weights, average = routed(torch.stack(history), whole, groups, 1e-2)
    found = op("depth_router", history, query, weight, groups=groups, eps=1e-2)
    close(found, weights)
    close(op("mix_groups", history, found), average)
    if groups == 1:
        close(op("mix", history, found)[0], average)


def test_one_group_is_a_mix_of_one_way() -> None:
    history = [random(2, 3, 4, seed=i) for i in range(3)]
    for weights in (random(2, 3, 1, 3), random(1, 3)):
        close(op("mix_groups", history, weights), op("mix", history, weights)[0])


def test_groups_weigh_neighbouring_channels() -> None:
    history = [torch.full((1, 1, 6), float(i)) for i in (1, 10)]
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert op("mix_groups", history, weights).flatten().tolist() == [1, 1, 10, 10, 11, 11]


def test_a_fresh_router_averages_and_one_source_has_weight_one() -> None:
    history, query = [random(1, 2, 4, seed=i) for i in range(4)], torch.zeros(4, dtype=double)
    close(
        op("depth_router", history, query, groups=2, eps=1e-6),
        torch.full((1, 2, 2, 4), 0.25, dtype=double),
    )
    one = op("depth_router", history[:1], random(4), groups=1, eps=1e-6)
    assert torch.equal(one, torch.ones(1, 2, 1, 1, dtype=double))


def test_scores_of_narrow_sources_are_computed_in_float32() -> None:
    history = [(random(1, 2, 64, seed=i) * 30).bfloat16() for i in range(4)]
    query = random(64, seed=9).bfloat16()
    found = op("depth_router", history, query, groups=1, eps=1e-6)
    wide = op("depth_router", [x.float() for x in history], query.float(), groups=1, eps=1e-6)
    assert torch.equal(found, wide.bfloat16())


@pytest.mark.skipif(not GOLDEN.exists(), reason="no recorded values beside this checkout")
def test_recorded_weights_and_reads_come_out() -> None:
    from safetensors.torch import load_file

    want, given = (load_file(GOLDEN / f"{name}.safetensors") for name in ("outputs", "weights"))
    history = [want["x0"]]
    for number in range(7):
        router = f"connection.routers.{number}."
        query, weight = given[f"{router}query"], given[f"{router}key_norm_weight"]
        weights = op("depth_router", history, query, weight, groups=1, eps=1e-6)
        alpha = want[f"alpha.{number}"]  # [L, B, T, G]
        torch.testing.assert_close(weights, alpha.permute(1, 2, 3, 0), rtol=1e-5, atol=3e-6)
        read = want[f"read.{number}"] if number < 6 else want["wired"]
        for name in ("mix", "mix_groups"):
            found = op(name, history, weights)
            found = found[0] if isinstance(found, tuple) else found
            torch.testing.assert_close(found, read, rtol=1e-5, atol=1e-5)
        history = [*history, want[f"out.{number}"]] if number < 6 else history


# The fusion, on a graph of routers over a growing history

WIDTH = 12
NAMES = ("router.query", "router.weight", "norm.weight")


class Builder:
    """A graph of sublayers, each an activation of what its router reads."""

    def __init__(self, *, groups: int, norm: str = "rms_norm") -> None:
        names = {f"blocks.{i}.{n}": WIDTH for i in range(4) for n in NAMES}
        params = {p: Param(path=p, shape=(n,), init=ONES) for p, n in names.items()}
        self.graph = LayerGraph(name="forward", params=params)
        self.groups, self.norm = groups, norm
        kind = Kind((sym("B"), sym("T"), WIDTH))
        self.x = self.node("inputs.x", "input", attrs={"list": False}, outputs=(kind,))

    def node(self, path: str, op: str, arguments: Any = None, **more: Any) -> Value:
        attrs, params = more.pop("attrs", {}), more.pop("params", {})
        full = registry()[op].full_attrs(attrs) if op in registry() else attrs
        record = Record(path=path, op=op, attrs=full, params=params, **more)
        found = self.graph.add(record, arguments or {})
        return found[0] if found else Value(path)

    def sublayer(self, history: Value, i: int) -> tuple[Value, Value]:
        """What sublayer i puts out, and the average that it read."""
        base = f"blocks.{i}."
        params = {"query": f"{base}router.query", "weight": f"{base}router.weight"}
        attrs = {"groups": self.groups, "eps": 1e-3}
        read = {"history": history}
        weights = self.node(f"{base}router", "depth_router", read, attrs=attrs, params=params)
        name = "mix" if self.groups == 1 else "mix_groups"
        y = self.node(f"{base}read", name, {**read, "weights": weights})
        if self.norm:
            gain = {"weight": f"{base}norm.weight"}
            x = self.node(f"{base}norm", self.norm, {"x": y}, attrs={"eps": 1e-2}, params=gain)
        else:
            x = y
        return self.node(f"{base}out", "activation", {"x": x}, attrs={"kind": "tanh"}), y

    def finish(self, outputs: Sequence[Value]) -> LayerGraph:
        self.node("outputs", "output", {f"out{i}": value for i, value in enumerate(outputs)})
        verify(self.graph)
        return self.graph


def stacked(*, groups: int, norm: str = "rms_norm", taps: Sequence[str] = ()) -> LayerGraph:
    """Four sublayers; the last average is put out too, so that it is read twice."""
    builder = Builder(groups=groups, norm=norm)
    history = builder.node("history.0", "append", {"x": builder.x})
    for i in range(4):
        made, average = builder.sublayer(history, i)
        if i < 3:
            both = {"history": history, "x": made}
            history = builder.node(f"history.{i + 1}", "append", both)
    return builder.finish([made, average, *(Value(path) for path in taps)])


def run_graph(graph: LayerGraph, *, kernels: bool) -> list[Tensor]:
    """Outputs, then the gradients of the input and of every parameter, in float64."""
    shapes = {name: param.shape for name, param in graph.params.items()}
    containers = empty_parameters(shapes, device=torch.device("cpu"), dtype=double)
    with torch.no_grad():
        for i, parameter in enumerate(containers.parameters()):
            parameter.copy_(random(WIDTH, seed=i))
    x = random(2, 5, WIDTH, seed=99).requires_grad_()
    found = lower(graph, containers, kernels=kernels)(x)
    loss = sum((random(2, 5, WIDTH, seed=i) * y).sum() for i, y in enumerate(found[:2]))
    leaves = [x, *containers.parameters()]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)  # type: ignore[arg-type]
    none = torch.zeros((), dtype=double)  # the gains of norms that are not there
    return [*found, *(none if grad is None else grad for grad in grads)]


def fused(graph: LayerGraph) -> tuple[LayerGraph, Tally]:
    tally = Tally()
    (fuse_mix,) = [each for each in PIPELINE if each.name == "fuse_mix"]
    return fuse_mix.apply(graph, tally, Options()), tally


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm", ""])
def test_routers_are_fused_with_their_sums_and_norms(groups: int, norm: str) -> None:
    plain = stacked(groups=groups, norm=norm)
    made, tally = fused(plain)
    verify(made)
    assert tally.fired == [f"blocks.{i}.read" for i in range(4)] and not tally.refused
    records = [r for r in made if r.op == "depth_attention"]
    assert len(records) == 4 and all("fuse_mix" in r.passes for r in records)
    assert not {"depth_router", "mix", "mix_groups", norm} & {r.op for r in made}
    counts = [(r.attrs["normed"], r.attrs["raw"]) for r in records]
    assert counts == ([(1, 0)] * 3 + [(1, 1)] if norm else [(0, 1)] * 4)
    laid_out = lay_out_history(made, Tally())
    appends = [r.attrs["capacity"] for r in laid_out if r.op == "append"]
    assert appends == [4] * 4
    want = run_graph(plain, kernels=False)
    for kernels in (False, True):
        found = run_graph(made, kernels=kernels)
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert not fused(made)[1].fired


@pytest.mark.parametrize("groups", [1, 3])
def test_weights_that_are_tapped_are_not_fused_away(groups: int) -> None:
    plain = stacked(groups=groups, taps=["blocks.2.router"])
    made, tally = fused(plain)
    assert tally.refused == {"blocks.2.router": "blocks.2.router is also read by outputs"}
    assert tally.fired == ["blocks.0.read", "blocks.1.read", "blocks.3.read"]
    for a, b in zip(run_graph(made, kernels=True), run_graph(plain, kernels=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_norms_of_several_gains_read_one_average() -> None:
    builder = Builder(groups=1)
    history = builder.node("history.0", "append", {"x": builder.x})
    made, average = builder.sublayer(history, 0)
    for i in (1, 2):
        params = {"weight": f"blocks.{i}.norm.weight"}
        builder.node(
            f"blocks.0.norm{i}", "rms_norm", {"x": average}, attrs={"eps": 1e-2}, params=params
        )
    found, _ = fused(builder.finish([made, Value("blocks.0.norm1"), Value("blocks.0.norm2")]))
    (record,) = [r for r in found if r.op == "depth_attention"]
    assert (record.attrs["normed"], record.attrs["raw"]) == (3, 0)
    assert [record.params[f"gains.{i}"] for i in range(3)] == [
        f"blocks.{i}.norm.weight" for i in range(3)
    ]


def router_and(builder: Builder, other: bool, ways: int = 1) -> LayerGraph:
    """A router whose weights a mix takes for another history, or for several ways."""
    params = {"query": "blocks.0.router.query"}
    history = builder.node("history.0", "append", {"x": builder.x})
    second = builder.node("history.1", "append", {"x": builder.x}) if other else history
    attrs = {"groups": ways, "eps": 1e-3}
    weights = builder.node(
        "blocks.0.router", "depth_router", {"history": history}, attrs=attrs, params=params
    )
    both = {"history": second, "weights": weights}
    return builder.finish([builder.node("blocks.0.read", "mix", both)])


def test_what_is_no_attention_over_one_depth_is_left_alone() -> None:
    ops = [[r.op for r in fused(router_and(Builder(groups=1), True))[0]]]
    ops.append([r.op for r in fused(router_and(Builder(groups=1), False, ways=2))[0]])
    assert all("depth_router" in each and "depth_attention" not in each for each in ops)
    assert "fused_mix" in ops[1]


def test_a_proposal_of_another_formula_is_refused() -> None:
    each = fusions()["depth_attention"]

    def wrong(graph: LayerGraph, record: Record) -> Any:
        found = each.match(graph, record)
        assert found is not None
        attrs = {**found.record.attrs, "eps": 1.0}
        return dataclasses.replace(found, record=dataclasses.replace(found.record, attrs=attrs))

    with pytest.raises(VerificationError, match="is no depth_router with"):
        fuse(stacked(groups=1), dataclasses.replace(each, match=wrong), Tally(), "fuse_mix")
