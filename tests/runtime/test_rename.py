"""Tables of names: patterns, variables, numbers, stacks, and what may be left unread."""

from __future__ import annotations

from typing import Any

import pytest

from multiway.runtime.rename import Pair, RenameTable

TABLE: dict[str, Any] = {
    "doc": "a table",
    "unwrap": ["model"],
    "vars": {"way": {"vision": "A", "text": "B"}, "p": ["weight", "bias"]},
    "names": {
        "embed.weight": "tok.weight",
        "blocks.{i}.norm.{way}.{p}": "layers.{i}.ln.{way}.{p}",
        "blocks.{i}.mix": "dense.{i-1}",
        "last.mix": "dense.{depth-1}",
        "next.{i}": "next.{i+10}",
    },
    "stacked": [
        {
            "when": {"wiring": "residual"},
            "ours": ["blocks.{i}.query.{p}", "blocks.{i}.key.{p}"],
            "theirs": "layers.{i}.qk.{p}",
            "groups": "num_heads",
        }
    ],
    "ignore": [
        {"when": {"wiring": "residual"}, "names": ["dense.*"]},
        {"names": ["*.cache"]},
    ],
}
FACTS = {"depth": 24, "num_heads": 4, "wiring": "residual"}


def table(**facts: Any) -> RenameTable:
    return RenameTable(TABLE, {**FACTS, **facts})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("embed.weight", "tok.weight"),
        ("blocks.7.norm.vision.weight", "layers.7.ln.A.weight"),
        ("blocks.17.norm.text.bias", "layers.17.ln.B.bias"),
        ("blocks.1.mix", "dense.0"),
        ("last.mix", "dense.23"),
        ("next.3", "next.13"),
    ],
)
def test_a_path_becomes_a_foreign_name(ours: str, theirs: str) -> None:
    assert table().pairs([ours]) == ([Pair((ours,), theirs)], [])


@pytest.mark.parametrize(
    "path",
    [
        "embed",
        "embed.weight.x",
        "embedxweight",
        "blocks.a.norm.vision.weight",
        "blocks.1.norm.audio.weight",
        "blocks.1.norm.vision.gain",
        "blocks.1.2.mix",
    ],
)
def test_what_the_table_does_not_know_is_said(path: str) -> None:
    assert table().pairs([path]) == ([], [path])


def test_a_stack_takes_its_paths_together_and_once() -> None:
    paths = ["blocks.2.query.weight", "blocks.2.key.weight", "blocks.2.key.bias"]
    pairs, unknown = table().pairs(paths)
    assert unknown == []
    assert pairs == [
        Pair(("blocks.2.query.weight", "blocks.2.key.weight"), "layers.2.qk.weight", 4),
        Pair(("blocks.2.query.bias", "blocks.2.key.bias"), "layers.2.qk.bias", 4),
    ]


def test_an_entry_holds_for_its_wiring_only() -> None:
    assert table(wiring="mudd").pairs(["blocks.2.query.weight"])[1] == ["blocks.2.query.weight"]
    assert table().ignores("dense.3")
    assert not table(wiring="mudd").ignores("dense.3")
    assert table(wiring="mudd").ignores("layers.0.cache")
    assert not table().ignores("layers.0.cached")


def test_a_foreign_name_says_what_it_is_of() -> None:
    assert table().is_of("layers.3.ln.A.weight", ("blocks.",))
    assert not table().is_of("layers.3.ln.A.weight", ("embed.",))
    assert not table().is_of("other", ("blocks.", "embed."))


def test_where_a_file_keeps_its_state_dict() -> None:
    assert table().unwrap == ("model",)
    assert RenameTable({"names": {}}, {}).unwrap == ()
