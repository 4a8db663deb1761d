"""Every entry of the zoo, because it is there: checks, builds, verifies; test members run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.verify import verify
from multiway.runtime.tasks.random_inputs import random_inputs
from multiway.zoo import catalogue

ENTRIES = [entry.name for entry in catalogue()]
TESTS = [name for name in ENTRIES if name.endswith("-test")]
GIANT = {"vision": 692e6, "text": 692e6, "fused": 52e6, "attention": 317e6}


def builds(name: str, *, every: bool) -> None:
    """Builds the programs of the heads of an entry: all, or of large entries one in turn."""
    spec = mw.load(name)
    found = [(h, p) for h in spec.heads for p in program_names(spec.for_head(h))]
    if not every and name not in TESTS:
        found = [found[ENTRIES.index(name) % len(found)]]
    for head, program in found:
        verify(mw.build(spec, head=head, program=program))


def in_turn() -> list[Any]:
    """All entries; not slow are the small ones, and of the others in a family every third."""
    found = []
    for family in catalogue().families:
        large = [each for each in catalogue() if each.family == family and each.name not in TESTS]
        for i, entry in enumerate(large):
            marks = () if i % 3 == 0 else (pytest.mark.slow,)
            found.append(pytest.param(entry.name, marks=marks))
    return [*TESTS, *found]


@pytest.mark.parametrize("name", in_turn())
def test_an_entry_builds_and_verifies(name: str) -> None:
    builds(name, every=False)


@pytest.mark.slow
def test_every_program_of_every_head_builds_and_verifies() -> None:
    for name in ENTRIES:
        builds(name, every=True)


def test_every_family_has_a_small_member_a_card_and_a_table() -> None:
    zoo = catalogue()
    for family in zoo.families:
        members = [entry for entry in zoo if entry.family == family]
        assert any(entry.name.endswith("-test") for entry in members), family
        assert {"family", "paper", "licence", "code", "weights"} <= members[0].card.keys(), family
        assert zoo.weights(family)["names"], family
        files = members[0].card["weights"]["files"]
        for name, heads in files.items():
            assert heads.keys() <= mw.load(name).heads.keys(), name


@pytest.mark.parametrize("name", TESTS)
def test_small_members_run_every_program_forward_and_backward(name: str) -> None:
    for head in mw.load(name).heads:
        model = mw.compile(name, head=head)
        assert sum(p.numel() for p in model.parameters()) < 300_000
        for program in model.programs:
            result = model.run(program, **random_inputs(model, program))
            if program != "loss":
                continue
            loss = result[0]
            loss.backward()
            assert torch.isfinite(loss)
            assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_giant_has_the_papers_four_sums() -> None:
    """692M + 692M + 52M of experts and 317M of attention, to within 1 %."""
    found = dict.fromkeys(GIANT, 0)
    for path, param in mw.build("beit3-giant", head="features").params.items():
        names = path.split(".")
        if "norm" in path or names[0] != "blocks":
            continue
        found["attention" if names[2] == "attention" else names[4]] += param.size
    for part, size in GIANT.items():
        assert abs(found[part] / size - 1) < 0.01, part


def test_the_fused_expert_serves_pairs_only() -> None:
    """In the top layers a program of image and text reads the fused way, others their own."""
    both = mw.build("beit3-giant", head="features", program="forward")
    alone = mw.build("beit3-giant", head="features", program="forward_image")
    read = {path for record in both for path in record.params.values() if ".ffn.up." in path}
    assert "blocks.39.ffn.up.fused.weight" in read
    assert "blocks.39.ffn.up.vision.weight" not in read
    assert "blocks.36.ffn.up.vision.weight" in read
    read = {path for record in alone for path in record.params.values() if ".ffn.up." in path}
    assert "blocks.39.ffn.up.vision.weight" in read
    assert not any("fused" in path for path in read)
