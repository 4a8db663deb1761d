"""Tables of names: patterns, variables, numbers, stacks, and what may be left unread."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from multiway.runtime.checkpoints.layout import laid, laid_shape, taken
from multiway.runtime.checkpoints.rename import Pair, RenameTable

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


# How several of ours lie in one of theirs

LAID: list[tuple[dict[str, Any], list[tuple[int, ...]], tuple[int, ...]]] = [
    ({}, [(2, 3), (4, 3)], (6, 3)),
    ({"groups": 2}, [(2, 3), (4, 3)], (6, 3)),
    ({"along": "columns"}, [(2, 1), (2, 3)], (2, 4)),
    ({"along": "new"}, [(), ()], (2,)),
    ({"along": "new"}, [(4, 3)], (1, 4, 3)),
    ({"along": "new", "transpose": True}, [(4, 3), (4, 3)], (2, 3, 4)),
    ({"transpose": True}, [(1, 3), (4, 3)], (3, 5)),
    ({"flat": True}, [(4, 1)], (4,)),
]


@pytest.mark.parametrize(("how", "shapes", "wanted"), LAID)
def test_what_is_laid_is_taken_again(how: dict[str, Any], shapes: Any, wanted: Any) -> None:
    pair = Pair(tuple("abc"[: len(shapes)]), "x", **how)
    parts = [
        torch.arange(math.prod(shape)).reshape(shape) + 100 * i for i, shape in enumerate(shapes)
    ]
    whole = laid(pair, parts)
    sizes = [part.shape for part in parts]
    assert whole.shape == laid_shape(pair, sizes) == wanted
    assert all(map(torch.equal, taken(pair, whole.contiguous(), sizes), parts))
    assert pair.plain is False


def test_places_of_what_is_laid() -> None:
    a, b = torch.tensor([[1], [2]]), torch.tensor([[3, 4], [5, 6]])
    assert laid(Pair(("a", "b"), "x", along="columns"), [a, b]).tolist() == [[1, 3, 4], [2, 5, 6]]
    assert laid(Pair(("a", "b"), "x", along="new", transpose=True), [b, b + 10]).tolist() == [
        [[3, 5], [4, 6]],
        [[13, 15], [14, 16]],
    ]


def test_numbers_are_worked_out_and_run_over_blocks() -> None:
    data = {
        "names": {
            "blocks.{i}.a": "sub.{2*i}",
            "blocks.{i}.b": "sub.{2*i+1}",
            "end": "sub.{2*depth}",
        },
        "stacked": [
            {"when": {"wiring": ["hc", "frac"]}, "ours": ["blocks.{i}.a"], "theirs": "no.{i}"},
            {"ours": ["blocks.{i}.x", "blocks.{i}.y"], "theirs": "all", "each": {"i": "depth"}},
        ],
    }
    found = RenameTable(data, {"depth": 2, "wiring": "mhc"})
    pairs, unknown = found.pairs(["blocks.3.a", "blocks.3.b", "end", "blocks.0.x", "blocks.1.y"])
    assert [pair.theirs for pair in pairs] == ["sub.6", "sub.7", "sub.4", "all"]
    assert pairs[-1].ours == ("blocks.0.x", "blocks.0.y", "blocks.1.x", "blocks.1.y")
    assert unknown == []
    assert RenameTable(data, {"wiring": "frac"}).pairs(["blocks.3.a"])[0][0].theirs == "no.3"
