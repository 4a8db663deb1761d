"""How specs build on one another: extends, --set, like, named wirings, changes of some layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import multiway as mw
from multiway.compiler.heads import kinds
from multiway.specs.data_folders import wiring_files
from multiway.specs.reading.full_form import full_document
from multiway.specs.reading.merge import merge, strip
from multiway.specs.text.source import Node, parse

PARTS = Path(__file__).parents[1] / "bad" / "parts"
DECODER = (PARTS / "decoder.yaml").read_text()
PAIR = (PARTS / "pair.yaml").read_text()


def node(text: str) -> Node:
    return parse(text, file="x.yaml")


def merged(base: str, change: str) -> Any:
    return strip(merge(node(base), node(change))).plain()


# Two mappings


@pytest.mark.parametrize(
    ("base", "change", "result"),
    [
        ("{a: 1, b: 2}", "{b: 3, c: 4}", {"a": 1, "b": 3, "c": 4}),
        ("{a: {x: 1, y: {z: 2}}}", "{a: {y: {w: 3}}}", {"a": {"x": 1, "y": {"z": 2, "w": 3}}}),
        ("{a: [1, 2, 3]}", "{a: [4]}", {"a": [4]}),
        ("{a: [{x: 1}]}", "{a: [{y: 1}]}", {"a": [{"y": 1}]}),
        ("{a: {x: 1}}", "{a: 2}", {"a": 2}),
        ("{a: 2}", "{a: {x: 1}}", {"a": {"x": 1}}),
        ("{a: 1, b: {x: 1, y: 2}}", "{a: ~, b: {x: ~}}", {"b": {"y": 2}}),
        ("{a: 1}", "{b: ~, c: {d: ~, e: 1}}", {"a": 1, "c": {"e": 1}}),
        ("{a: {x: 1}}", "{a: {}}", {"a": {"x": 1}}),
        ("{a: {x: 1}}", "{a: false}", {"a": False}),
        # Another kind has other keys, so nothing of the old one is kept; the same kind merges.
        ("{a: {kind: k, x: 1}}", "{a: {kind: l, y: 2}}", {"a": {"kind": "l", "y": 2}}),
        ("{a: {kind: k, x: 1}}", "{a: {kind: k, y: 2}}", {"a": {"kind": "k", "x": 1, "y": 2}}),
        ("{a: {kind: k, x: 1}}", "{a: {y: 2}}", {"a": {"kind": "k", "x": 1, "y": 2}}),
        ("{a: {kind: k, x: 1}}", "{a: {kind: ~, y: 2}}", {"a": {"x": 1, "y": 2}}),
        ("{a: {x: 1}}", "{a: {kind: k}}", {"a": {"kind": "k"}}),
        ("{a: {}}", "{a: {kind: k}}", {"a": {"kind": "k"}}),
        ("{a: {use: k, x: 1}}", "{a: {use: l, y: 2}}", {"a": {"use": "l", "y": 2}}),
    ],
)
def test_merge(base: str, change: str, result: object) -> None:
    assert merged(base, change) == result


DATA = st.recursive(
    st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=10,
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), DATA, min_size=1, max_size=4)


def plain_merge(base: Any, change: Any) -> Any:
    """The rule again, on plain data and without kinds."""
    if not isinstance(change, dict):
        return change
    kept = dict(base) if isinstance(base, dict) else {}
    for name, value in change.items():
        kept[name] = plain_merge(kept.get(name), value)
    return {name: value for name, value in kept.items() if value is not None}


@given(MAPPINGS, MAPPINGS)
def test_merge_of_any_mappings(base: dict[str, Any], change: dict[str, Any]) -> None:
    found = strip(merge(node(yaml.safe_dump(base)), node(yaml.safe_dump(change)))).plain()
    assert found == plain_merge(plain_merge({}, base), change)


@given(MAPPINGS, MAPPINGS)
def test_merge_changes_neither_side(base: dict[str, Any], change: dict[str, Any]) -> None:
    first, second = node(yaml.safe_dump(base)), node(yaml.safe_dump(change))
    merge(first, second)
    assert (first.plain(), second.plain()) == (base, change)


def test_a_merged_value_stands_where_it_was_written() -> None:
    tree = merge(parse("a: {x: 1, y: 2}", file="base"), parse("\na: {y: 3, z: 4}", file="change"))
    assert str(tree["a"].span) == "base:1:1"
    assert [str(tree["a"][name].span) for name in "xyz"] == [
        "base:1:8",
        "change:2:8",
        "change:2:14",
    ]
    assert str(tree["a"].key_span("z")) == "change:2:11"


def test_a_tilde_deletes_what_a_wiring_or_a_like_brings() -> None:
    """It is laid over things that are read after the spec itself."""
    base = {"multiway": 1, "extends": "mudd-pythia", "name": "x"}
    wiring = mw.load({**base, "wiring": {"mix": {"generator": None}}}).wiring
    assert wiring.use == "mudd"
    assert wiring.mix.generator is None
    assert wiring.mix.static is not None
    assert mw.load({**base, "wiring": None}).wiring.use == "residual"
    heads = {"short": {"like": "vqa", "dense": None}, "nlvr2": None}
    found = mw.load({**base, "extends": "beit3", "heads": heads}).heads
    assert vars(found["short"])["dense"] is None
    assert vars(found["vqa"])["dense"] == "tanh"
    assert "nlvr2" not in found


# Short forms


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("wiring: mudd", {"wiring": {"use": "mudd"}}),
        ("block: {norm: rms_norm}", {"block": {"norm": {"kind": "rms_norm"}}}),
        ("block: {attention: {sub_norm: true}}", {"block": {"attention": {"sub_norm": {}}}}),
        ("block: {attention: {sub_norm: false}}", {"block": {"attention": {"sub_norm": False}}}),
        ("block: {attention: {position: rotary}}",
         {"block": {"attention": {"position": {"kind": "rotary"}}}}),
        ("layers: [{ffn: {norm: true}}]", {"layers": [{"ffn": {"norm": {}}}]}),
        ("init: {a: zeros}", {"init": {"a": {"kind": "zeros"}}}),
        ("heads: {f: features}", {"heads": {"f": {"kind": "features"}}}),
        ("heads: {c: {norm: true}}", {"heads": {"c": {"norm": {}}}}),
        ("wiring: {mix: {static: true, generator: {norm: false}}}",
         {"wiring": {"mix": {"static": {}, "generator": {"norm": False}}}}),
        ("block: {ffn: {bias: true}}", {"block": {"ffn": {"bias": True}}}),
        ("block: [norm]", {"block": ["norm"]}),
        ("other: true", {"other": True}),
    ],
)  # fmt: skip
def test_full_form(short: str, full: object) -> None:
    made = full_document(node(short), kinds())
    assert made.plain() == full
    assert full_document(made, kinds()).plain() == full


def loaded(*texts: str, folder: Path, **settings: Any) -> mw.Spec:
    """A chain of specs, each of which extends the one before it."""
    for i, text in enumerate(texts):
        extends = f"extends: {i - 1}.yaml\n" if i else ""
        (folder / f"{i}.yaml").write_text(extends + text)
    return mw.load(folder / f"{len(texts) - 1}.yaml", set=settings)


def test_a_change_keeps_what_a_short_form_named(tmp_path: Path) -> None:
    spec = loaded(
        DECODER,
        "wiring: mudd\nblock: {attention: {qk_norm: layer_norm, sub_norm: true}}",
        "wiring: {mix: {first_block: three_norms}}\n"
        "block: {attention: {qk_norm: {eps: 1e-3}, sub_norm: {eps: 1e-4}}}",
        "block: {attention: {sub_norm: true}}",
        folder=tmp_path,
    )
    assert (spec.wiring.use, spec.wiring.mix.first_block) == ("mudd", "three_norms")
    attention = spec.blocks[0].attention
    assert attention.qk_norm is not None
    assert (attention.qk_norm.kind, attention.qk_norm.eps) == ("layer_norm", 1e-3)
    assert attention.sub_norm is not None
    assert attention.sub_norm.eps == 1e-4


# extends


def test_a_chain_of_extends(tmp_path: Path) -> None:
    spec = loaded(
        DECODER,
        "name: second\ndims: {width: 64}\nblock: {ffn: {gate: true}}",
        "doc: the third\ndims: {depth: 3}\nblock: {ffn: {gate: ~, bias: true}}",
        folder=tmp_path,
    )
    assert (spec.name, spec.depth, spec.width) == ("second", 3, 64)
    ffn = spec.blocks[0].ffn
    assert (ffn.gate, ffn.bias, ffn.hidden) == (False, True, 4 * 64)
    assert spec.tree["doc"].value == "the third"


def test_extends_in_a_folder_below_finds_its_own_neighbours(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text(DECODER)
    (tmp_path / "below" / "middle.yaml").write_text("extends: base.yaml\ndims: {depth: 5}")
    # Another file of the same name on the way is another file, not a circle.
    (tmp_path / "base.yaml").write_text("extends: below/middle.yaml\nname: outer")
    assert mw.load(tmp_path / "base.yaml").depth == 5
    assert mw.load(tmp_path / "base.yaml").name == "outer"


def test_extends_of_a_zoo_name() -> None:
    spec = mw.load({"extends": "beit3-test", "name": "mine", "dims": {"depth": 1}})
    assert (spec.name, spec.depth, spec.origin) == ("mine", 1, "beit3-test")
    assert set(spec.heads) == set(mw.load("beit3-test").heads)


def test_a_deleted_extends_is_none(tmp_path: Path) -> None:
    spec = loaded(DECODER + "extends: ~\n", folder=tmp_path)
    assert spec.origin == "decoder"


# --set


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    path = tmp_path / "decoder.yaml"
    path.write_text(DECODER)
    return path


def test_set_of_dims(decoder: Path) -> None:
    spec = mw.load(decoder, set={"depth": 3, "width": "2 * 32", "dims.vocab": "7"})
    assert (spec.depth, spec.width, spec.dims["vocab"]) == (3, 64, 7)


def test_set_by_path(decoder: Path) -> None:
    settings = {
        "block.order": "parallel",
        "block.norm.eps": 1e-3,
        "block.ffn.hidden": "max(1, width)",  # no quotes: nothing stands around it
        "block.ffn.bias": True,
        "block.attention.position": None,
        "block.attention.qk_norm": "rms_norm",
        "wiring.use": "mudd",
        "heads.lm.tie": "true",
    }
    spec = mw.load(decoder, set=settings)
    block = spec.blocks[0]
    assert (block.order, block.norm.eps, block.ffn.hidden, block.ffn.bias) == (
        "parallel",
        1e-3,
        48,
        True,
    )
    assert block.attention.position is None
    assert block.attention.qk_norm is not None
    assert block.attention.qk_norm.kind == "rms_norm"
    assert spec.wiring.use == "mudd"
    assert spec.heads["lm"].node["tie"].value is True


def test_the_last_set_holds(decoder: Path) -> None:
    assert mw.load(decoder, set={"depth": 3, "dims.depth": 4}).depth == 4


def test_set_of_nothing_deletes(decoder: Path) -> None:
    assert mw.load(decoder, set={"output.norm": ""}).output.norm is None
    assert (
        mw.load(decoder, set={"block.attention.position": "~"}).blocks[0].attention.position is None
    )


def test_set_changes_a_zoo_entry() -> None:
    spec = mw.load("beit3-base", set={"depth": 2, "heads.vqa.classes": 7})
    assert spec.depth == 2
    assert spec.heads["vqa"].node["classes"].value == 7
    # vqa_384 is like vqa, so it follows.
    assert spec.heads["vqa_384"].node["classes"].value == 7
    assert mw.load("beit3-base").depth == 12


def test_numbers_of_python_keep_their_value(decoder: Path) -> None:
    assert mw.load(decoder, set={"block.norm.eps": 1e-7}).blocks[0].norm.eps == 1e-7
    assert mw.load(decoder, set={"block.norm.eps": 0.1 + 0.2}).blocks[0].norm.eps == 0.1 + 0.2


# Defaults and wirings


def test_without_a_wiring_it_is_residual(decoder: Path) -> None:
    assert mw.load(decoder).wiring.use == "residual"


def test_a_deleted_wiring_is_the_default(tmp_path: Path) -> None:
    spec = loaded(DECODER + "wiring: mudd\n", "wiring: ~", folder=tmp_path)
    assert (spec.wiring.use, spec.wiring.mix) == ("residual", None)


def test_keys_of_a_wiring_lie_over_the_named_one(tmp_path: Path) -> None:
    mix = "{streams: [v, r], generator: {activation: silu}, static: false}"
    change = f"wiring: {{use: mudd, mix: {mix}}}"
    wiring = loaded(DECODER + change, folder=tmp_path).wiring.mix
    assert wiring.streams == ("v", "r")
    assert wiring.static is None
    assert wiring.generator is not None
    assert wiring.generator.activation == "silu"
    assert wiring.generator.norm is not None
    assert wiring.generator.norm.weight is False  # as specs/wirings/mudd.yaml has it


@pytest.mark.parametrize("name", sorted(wiring_files()))
def test_every_wiring_holds_on_its_own(name: str, decoder: Path) -> None:
    spec = mw.load(decoder, set={"wiring.use": name})
    mw.build(spec)
    assert spec.tree["wiring"]["doc"].value


def test_another_wiring_keeps_nothing_of_the_first(tmp_path: Path) -> None:
    spec = loaded(
        DECODER + "wiring: {use: mudd, mix: {first_block: three_norms}}\n",
        "wiring: residual",
        folder=tmp_path,
    )
    assert spec.wiring.mix is None


# like


def test_like_takes_what_it_does_not_change(tmp_path: Path) -> None:
    spec = loaded(
        PAIR,
        "heads:\n"
        "  second: {like: third, classes: 7}\n"
        "  third: {like: classes, pool: [mean of text], norm: true}\n",
        folder=tmp_path,
    )
    plain = {name: spec.heads[name].node.plain() for name in ("second", "third")}
    assert plain["third"] == {
        "kind": "classification",
        "pool": ["mean of text"],
        "classes": 10,
        "norm": {},
    }
    assert plain["second"] == {**plain["third"], "classes": 7}
    assert spec.heads["classes"].node["pool"].plain() == ["cls of image", "first of text"]


def test_like_a_head_that_is_a_word(tmp_path: Path) -> None:
    change = "heads: {short: features, other: {like: short, reads: [text]}}"
    spec = loaded(PAIR, change, folder=tmp_path)
    assert spec.heads["other"].node.plain() == {"kind": "features", "reads": ["text"]}


def test_like_another_kind_takes_nothing(tmp_path: Path) -> None:
    change = "heads: {other: {like: classes, kind: features}}"
    assert loaded(PAIR, change, folder=tmp_path).heads["other"].node.plain() == {"kind": "features"}


# Layers


def test_changes_of_layers(tmp_path: Path) -> None:
    spec = loaded(
        DECODER,
        "dims: {depth: 6}\n"
        "layers:\n"
        "  - {where: layer >= depth - 3, ffn: {hidden: 100 + layer, gate: true}}\n"
        "  - {where: layer == depth - 1, ffn: {gate: ~}, attention: {position: ~}}\n"
        "  - {where: true, order: parallel}\n"
        "  - {where: false, order: sequential}\n",
        folder=tmp_path,
    )
    ffn = [block.ffn for block in spec.blocks]
    assert [each.hidden for each in ffn] == [192, 192, 192, 103, 104, 105]
    assert [each.gate for each in ffn] == [False] * 3 + [True, True, False]
    assert [block.attention.position is None for block in spec.blocks] == [False] * 5 + [True]
    assert {block.order for block in spec.blocks} == {"parallel"}


def test_a_changed_kind_in_a_layer_replaces(tmp_path: Path) -> None:
    text = DECODER.replace("kind: rms_norm, eps: 1e-6", "kind: rms_norm, eps: 1e-6, weight: false")
    change = "layers: [{where: layer > 0, norm: {kind: layer_norm, eps: 1e-5}}]"
    norms = [block.norm for block in loaded(text, change, folder=tmp_path).blocks]
    assert [(norm.kind, norm.weight) for norm in norms] == [
        ("rms_norm", False),
        ("layer_norm", True),
    ]
