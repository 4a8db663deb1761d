"""Sums that are written where the list of hiddens lies: which, and that nothing else changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused import member, outputs, pair, sizes_for, stages
from strategies import random_inputs

import multiway as mw
from multiway.compiler.costs import moved_bytes
from multiway.compiler.fusion import Tally
from multiway.compiler.graph import LayerGraph, Param, Record
from multiway.compiler.init import ZEROS
from multiway.compiler.passes.place_hiddens import place_hiddens
from multiway.compiler.pipeline import Options, run
from multiway.compiler.types import Tensor
from multiway.runtime.kernels import native
from multiway.runtime.kernels.mix import buffer
from multiway.runtime.kernels.mix.buffer import Buffer
from multiway.runtime.kernels.mix.history import History
from multiway.specs.reading.merge import wiring_names

WIRINGS = ("denseformer", "dar", "attnres", "mhar")
SPECS = ("mudd-pythia-test", "muddformer-test", *(f"pythia-test+{name}" for name in WIRINGS))
OTHERS = [f"pythia-test+{name}" for name in wiring_names() if name not in WIRINGS]


@pytest.fixture(params=["c", "plain"])
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each sum or stream that asked got a place. Small ones ask, too."""
    asked: list[bool] = []
    entry = Buffer.entry

    def spy(self: Buffer, index: int, like: torch.Tensor) -> torch.Tensor | None:
        found = entry(self, index, like)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(buffer, "FEWEST", 0)
    monkeypatch.setattr(Buffer, "entry", spy)
    with native.disabled() if request.param == "plain" else contextlib.nullcontext():
        yield asked


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_programs_without_gradients_compute_what_they_did(
    name: str, mode: Any, placed: list[bool]
) -> None:
    assert_computes_the_same(name, mode)
    assert placed and all(placed)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_so_do_those_of_every_other_wiring(name: str, placed: list[bool]) -> None:
    assert_computes_the_same(name, torch.no_grad)
    assert all(placed)


def test_inference_programs_place_hiddens_too(placed: list[bool]) -> None:
    assert_computes_the_same("mudd-pythia-test", torch.no_grad, mode="inference")
    assert placed and all(placed)


def assert_computes_the_same(name: str, without: Any, **options: Any) -> None:
    spec = member(name).for_head(None)
    reference, fused = pair(spec, **options)
    graph = mw.build(spec)
    with without():
        for seed in range(2):  # the second call takes what the first gave back
            torch.manual_seed(seed)
            given = random_inputs(graph, sizes_for(graph))
            found = [outputs(model, "forward", given) for model in (fused, reference)]
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_sums_that_learn_are_made_as_before(placed: list[bool]) -> None:
    spec = member("mudd-pythia-test").for_head(None)
    graph = mw.build(spec)
    _, fused = pair(spec)
    outputs(fused, "forward", random_inputs(graph, sizes_for(graph)))
    assert not placed


def test_sums_of_lists_that_are_there_before_them_are_placed() -> None:
    found = stages("mudd-pythia-test", "forward")
    graph, fired = found["place_hiddens"].graph, found["place_hiddens"].tally.fired
    appended = {
        graph.sources(r.path)["x"].path: graph.sources(r.path)["history"]
        for r in graph
        if r.op == "append" and "history" in graph.sources(r.path)
    }
    # The list that the first block's sum is appended to is made of what the block reads.
    sums = [path for path in fired if path in appended]
    assert sums == [f"blocks.{i}.hidden" for i in (1, 2, 3)]
    assert all(graph.sources(path)["room"] == appended[path] for path in sums)
    before, sizes = found["fuse_residual"].graph, sizes_for(graph)
    # A place is not read; biases are, by whoever adds them.
    assert moved_bytes(graph, sizes) == moved_bytes(before, sizes)


def mixes_of(graph: LayerGraph) -> dict[str, Record]:
    """The mixes by the sums that begin with their last way."""
    sums = [record for record in graph if record.op == "linear_sum"]
    makers = {r.path: graph.record(graph.sources(r.path)["residual"].path) for r in sums}
    return {path: record for path, record in makers.items() if record.op == "fused_mix"}


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_mixes_begin_the_sums_of_the_lists_they_read(mode: str) -> None:
    found = stages("mudd-pythia-test", "forward", mode=mode)
    before = found["fuse_residual"].graph
    graph, fired = found["place_hiddens"].graph, found["place_hiddens"].tally.fired
    mixes = mixes_of(graph)
    assert len(mixes) == 3
    for path, mix in mixes.items():
        biases = [v for k, v in before.record(path).params.items() if k.startswith("biases")]
        assert len(biases) == 2 and mix.path in fired
        assert [mix.params["offsets.0"], mix.params["offsets.1"]] == biases
        assert mix.attrs["placed"] and "biases.0" not in graph.record(path).params
    assert mixes_of(before).keys() == mixes.keys()
    assert not any(mix.attrs.get("placed") for mix in mixes_of(before).values())


def test_a_stream_with_another_reader_is_not_made_a_hidden(placed: list[bool]) -> None:
    spec, taps = member("mudd-pythia-test").for_head(None), ["blocks.2.mix.sum:3"]
    graph = run(mw.build(spec, taps=taps), Options())[-1].graph
    assert {path for path, mix in mixes_of(graph).items() if mix.attrs.get("placed")} == {
        "blocks.1.hidden",
        "blocks.3.hidden",
    }
    reference, fused = pair(spec, taps=taps)
    given = random_inputs(graph, sizes_for(graph))
    with torch.no_grad():
        found = [outputs(model, "forward", given) for model in (fused, reference)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("same_list", [True, False])
def test_a_mix_of_another_list_begins_no_sum(same_list: bool) -> None:
    graph = LayerGraph(name="forward", params={})
    for name, size in (("weight", (4, 4)), ("bias", (4,))):
        graph.params[name] = Param(path=name, shape=size, init=ZEROS)
    (x,) = graph.add(Record(path="inputs.x", op="input", outputs=(Tensor((1, 3, 4)),)), {})
    (w,) = graph.add(Record(path="inputs.w", op="input", outputs=(Tensor((1, 3, 1, 1)),)), {})
    (first,) = graph.add(Record(path="history.0", op="append", attrs={"capacity": 3}), {"x": x})
    (second,) = graph.add(
        Record(path="history.1", op="append", attrs={"capacity": 3}), {"history": first, "x": x}
    )
    mix = {"norm": "", "eps": 0.0, "normed": [], "raw": [0]}
    (stream,) = graph.add(
        Record(path="mix", op="fused_mix", attrs=mix), {"history": first, "weights": w}
    )
    params = {"weights.0": "weight", "biases.0": "bias"}
    (y,) = graph.add(
        Record(path="hidden", op="linear_sum", params=params), {"residual": stream, "xs": [x]}
    )
    room = first if same_list else second
    (last,) = graph.add(
        Record(path="history.2", op="append", attrs={"capacity": 3}), {"history": room, "x": y}
    )
    graph.add(Record(path="outputs", op="output"), {"y": last})
    found = place_hiddens(graph, Tally())
    assert found.sources("hidden")["room"] == room
    assert found.record("mix").attrs.get("placed", False) == same_list
    assert ("biases.0" in found.record("hidden").params) != same_list


def test_every_sum_that_was_begun_is_added_up_in_place(
    placed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = member("mudd-pythia-test").for_head(None)
    _, fused = pair(spec)
    graph, went_on = mw.build(spec), []
    goes_on = History.goes_on
    monkeypatch.setattr(
        History, "goes_on", lambda *given: went_on.append(goes_on(*given)) or went_on[-1]
    )
    with torch.no_grad():
        outputs(fused, "forward", random_inputs(graph, sizes_for(graph)))
    assert went_on == [True] * 3


def test_what_is_put_out_lies_apart() -> None:
    spec = member("mudd-pythia-test").for_head(None)
    tapped = run(mw.build(spec, taps=["blocks.2.hidden"]), Options())
    fired = next(stage.tally.fired for stage in tapped if stage.name == "place_hiddens")
    assert fired and "blocks.2.hidden" not in fired


def test_without_lists_that_are_laid_out_nothing_is_placed() -> None:
    assert not stages("mudd-pythia-test", "forward", without=["fuse_mix"])[
        "place_hiddens"
    ].tally.fired
    assert not stages("pythia-test", "forward")["place_hiddens"].tally.fired
