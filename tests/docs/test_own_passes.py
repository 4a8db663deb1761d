"""The passes of docs/adding_a_fusion.md do what the page says of them."""

from __future__ import annotations

import torch
from own_passes import COUNT_SAVED, TANH_GELU

import multiway as mw
from multiway.compiler.pipeline import Options, Stages


def test_a_pass_of_ones_own_changes_a_model_where_it_is_allowed() -> None:
    tokens = torch.arange(12)[None]
    plain = mw.compile("pythia-test")(tokens=tokens)
    refused = mw.compile("pythia-test", passes=[TANH_GELU])(tokens=tokens)
    model = mw.compile("pythia-test", passes=[TANH_GELU], allow=["approx"])
    found = model(tokens=tokens)
    assert torch.equal(refused, plain)
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-3)


def test_an_analysis_of_ones_own_gives_numbers() -> None:
    def saved(batch: int) -> float:
        spec = mw.load("pythia-test").for_head("lm")
        options = Options(passes=[COUNT_SAVED], sizes={"B": batch, "T": 64})
        stages = {stage.name: stage for stage in Stages(spec, options)["loss"]}
        names = list(stages)
        assert stages["count_saved"].graph is stages[names[names.index("count_saved") - 1]].graph
        return stages["count_saved"].tally.numbers["MiB saved"]

    assert 1.9 < saved(4) / saved(2) <= 2  # tables of positions are one for all rows
    assert saved(2) > 0.5
