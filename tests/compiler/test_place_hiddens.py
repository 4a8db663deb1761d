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
from multiway.compiler.costs import node_moved_bytes
from multiway.compiler.pipeline import Options, run
from multiway.runtime.kernels import linear_sum, native
from multiway.runtime.kernels.mix.history import History

WIRINGS = ("denseformer", "dar", "attnres", "mhar")
SPECS = ("mudd-pythia-test", "muddformer-test", *(f"pythia-test+{name}" for name in WIRINGS))


@pytest.fixture(params=["c", "plain"])
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each sum that asked got a place. Small ones ask, too."""
    asked: list[bool] = []
    room = History.room

    def spy(self: History, like: torch.Tensor) -> torch.Tensor | None:
        found = room(self, like)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(linear_sum, "FEWEST", 0)
    monkeypatch.setattr(History, "room", spy)
    with native.disabled() if request.param == "plain" else contextlib.nullcontext():
        yield asked


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_programs_without_gradients_compute_what_they_did(
    name: str, mode: Any, placed: list[bool]
) -> None:
    spec = member(name).for_head(None)
    reference, fused = pair(spec)
    graph = mw.build(spec)
    with mode():
        for seed in range(2):  # the second call takes what the first gave back
            torch.manual_seed(seed)
            given = random_inputs(graph, sizes_for(graph))
            found = [outputs(model, "forward", given) for model in (fused, reference)]
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert placed and all(placed)


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
    assert set(fired) <= set(appended) and len(fired) >= len(appended) - 1
    for path in fired:
        assert graph.sources(path)["room"] == appended[path]
        before = found["fuse_residual"].graph
        sizes = sizes_for(graph)
        # A place is not read.
        assert node_moved_bytes(graph, graph.record(path), sizes) == node_moved_bytes(
            before, before.record(path), sizes
        )


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
