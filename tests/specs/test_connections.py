"""Who reads what over depth: worked out once for a spec, and only when it is asked for."""

from __future__ import annotations

from collections import Counter

import pytest

import multiway as mw
from multiway.specs import connections


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each mix was asked what a site reads by it."""
    asked: Counter[str] = Counter()
    one = connections._reading

    def counted(name: str, *rest: object) -> object:
        asked[name] += 1
        return one(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(connections, "_reading", counted)
    return asked


def test_every_answer_is_worked_out_once(answers: Counter[str]) -> None:
    spec = mw.load("mudd-pythia-test")
    mw.build(spec)
    mw.build(spec, program="loss")
    assert answers == {"mix": len(spec.connections.sites)}


def test_heads_with_the_same_blocks_share_the_answers(answers: Counter[str]) -> None:
    lm = {"kind": "causal_lm"}
    spec = mw.load("mudd-pythia-test", set={"heads.a": lm, "heads.b": lm})
    for head in spec.heads:
        mw.build(spec, head=head)
    assert answers == {"mix": len(spec.connections.sites)}


def test_a_head_with_dims_of_its_own_has_its_own_answers() -> None:
    deeper = {"kind": "causal_lm", "dims": {"depth": "6"}}
    spec = mw.load("mudd-pythia-test", set={"heads.deep": deeper})
    assert len(spec.for_head("deep").connections.sites) == 6 + 1
    assert len(spec.for_head("lm").connections.sites) == spec.depth + 1


def test_without_a_mix_nothing_is_asked(answers: Counter[str]) -> None:
    mw.build("pythia-test")
    assert not answers


def test_readings_and_sources() -> None:
    change = {"depth": 3, "wiring.mix.dilation": 2}
    found = mw.load("mudd-pythia-test", set=change).connections
    assert [site.path for site in found.sites] == ["blocks.0", "blocks.1", "blocks.2", "output"]
    read = [each and each.sources for each in found.readings("mix")]
    assert read == [None, (1,), (0, 2), (1, 3)]
    assert found.sources("mix") == (0, 1, 2, 3)
    assert found.reading("mix", found.sites[2]) is found.readings("mix")[2]


@pytest.mark.parametrize(("first_block", "first"), [("one_norm", False), ("three_norms", True)])
def test_norms_are_split_where_query_key_and_value_are_mixed(first_block: str, first: bool) -> None:
    change = {"depth": 2, "wiring.mix.first_block": first_block}
    found = mw.load("mudd-pythia-test", set=change).connections
    assert [found.split_norms(site) for site in found.sites] == [first, True, False]


def test_norms_are_not_split_without_a_mix() -> None:
    found = mw.load("pythia-test").connections
    assert not any(found.split_norms(site) for site in found.sites)
