"""Files as others write them, made here by hand and not by our own export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import multiway as mw
from multiway.runtime.checkpoints.layout import held, held_shapes, laid_shape
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError
from multiway.zoo import catalogue

MUDD = "mudd-pythia-test"
# Heads that no released checkpoint has.
UNRELEASED = {"mlm", "mim"}
MEMBERS = [
    pytest.param(name, head, id=f"{name}-{head}")
    for name in catalogue().names
    if name.endswith("-test")
    for head in mw.load(name).heads
    if head not in UNRELEASED
]
RESIDUAL = {
    "multiway": 1,
    "extends": MUDD,
    "name": "plain",
    "wiring": "residual",
}

Tensors = dict[str, torch.Tensor]


def random_like(shapes: Mapping[str, Any]) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(tuple(s), generator=generator) for name, s in shapes.items()}


def write(tensors: Tensors, path: Path, *, under: str = "") -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({under: tensors, "epoch": 3} if under else tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("name", "head"), MEMBERS)
def test_foreign_names_are_read(name: str, head: str, suffix: str, tmp_path: Path) -> None:
    model = mw.compile(name, head=head)
    own = dict(model.named_parameters())
    pairs, unknown = mw.rename_table(model.spec).pairs(own)
    assert unknown == []
    single = [pair for pair in pairs if pair.plain]
    shapes = {pair.theirs: laid_shape(pair, held_shapes(pair, own)) for pair in pairs}
    tensors = random_like(shapes)
    family = mw.rename_table(model.spec)
    under = family.unwrap[0] if family.unwrap else ""
    mw.import_weights(model, write(tensors, tmp_path / f"w{suffix}", under=under))
    for pair in single:
        assert torch.equal(held(pair, own)[0], tensors[pair.theirs]), pair
    for pair in pairs:
        if pair.entry is not None:
            assert torch.equal(own[pair.ours[0]][pair.entry], tensors[pair.theirs]), pair
    assert not model.random


def mudd_names(depth: int) -> Mapping[str, str]:
    """Names of the released MUDD-Pythia files, written out: ours to theirs."""
    found = {
        "embed.text.weight": "tok_embeddings.weight",
        "output.norm.weight": "norm.weight",
        "output.norm.bias": "norm.bias",
        "heads.lm.weight": "output.weight",
    }
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        for role, name in (("query", "wq"), ("key", "wk"), ("value", "wv"), ("output", "wo")):
            for part in ("weight", "bias"):
                found[f"{ours}.attention.{role}.{part}"] = f"{theirs}.attention.{name}.{part}"
        for part in ("weight", "bias"):
            found[f"{ours}.attention.norm.{part}"] = f"{theirs}.attention_norm.{part}"
            found[f"{ours}.ffn.norm.{part}"] = f"{theirs}.ffn_norm.{part}"
            found[f"{ours}.ffn.up.{part}"] = f"{theirs}.feed_forward.w1.{part}"
            found[f"{ours}.ffn.down.{part}"] = f"{theirs}.feed_forward.w2.{part}"
        found[f"{ours}.attention.query_norm.weight"] = f"{theirs}.attention.q_norm.weight"
        found[f"{ours}.attention.key_norm.weight"] = f"{theirs}.attention.k_norm.weight"
    return found


def residual_file(model: Model) -> tuple[Tensors, Tensors]:
    """(our tensors, the file of a model without connections): one matrix of q, then k, then v."""
    ours = random_like({name: p.shape for name, p in model.named_parameters()})
    theirs = {foreign: ours[name] for name, foreign in mudd_names(model.spec.depth).items()}
    for i in range(model.spec.depth):
        for part in ("weight", "bias"):
            parts = [theirs.pop(f"layers.{i}.attention.w{x}.{part}") for x in "qkv"]
            theirs[f"layers.{i}.attention.wqkv.{part}"] = torch.cat(parts)
        theirs[f"dense_bs.{i}"] = torch.zeros(4, i + 2)  # stays in such files, unread
    return ours, theirs


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_stacked_projections_come_apart_as_query_key_value(kv_heads: int, tmp_path: Path) -> None:
    model = mw.compile(RESIDUAL, set={"block.attention.kv_heads": kv_heads})
    ours, theirs = residual_file(model)
    assert theirs["layers.0.attention.wqkv.weight"].shape == (64 + 2 * 16 * kv_heads, 64)
    mw.import_weights(model, write(theirs, tmp_path / "w.bin"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, ours[name]), name


def refused(model: Model, tensors: Tensors, tmp_path: Path) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MultiwayError) as caught:
        mw.import_weights(model, write(tensors, tmp_path / "w.safetensors"))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    return str(caught.value)


def test_a_stacked_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    model = mw.compile(RESIDUAL)
    _, theirs = residual_file(model)
    name = "layers.2.attention.wqkv.weight"
    theirs[name] = theirs[name][:100].clone()
    text = refused(model, theirs, tmp_path)
    assert f"{name} is [100, 64], needs [192, 64]" in text
    assert "1 wrong shape; nothing was loaded" in text


def test_a_missing_stacked_matrix_is_named_with_all_it_holds(tmp_path: Path) -> None:
    model = mw.compile(RESIDUAL)
    _, theirs = residual_file(model)
    del theirs["layers.1.attention.wqkv.bias"]
    text = refused(model, theirs, tmp_path)
    query, key, value = (f"blocks.1.attention.{x}.bias" for x in ("query", "key", "value"))
    assert f"layers.1.attention.wqkv.bias (for {query}, {key}, {value})" in text


def test_what_is_ignored_without_connections_is_needed_with_them(tmp_path: Path) -> None:
    plain, mudd = mw.compile(RESIDUAL), mw.compile(MUDD)
    _, theirs = residual_file(plain)
    text = refused(mudd, theirs, tmp_path)
    assert "dynamic_dense.3.w1.weight (for output.mix.hidden.weight)" in text
    assert "layers.0.attention.wqkv.weight" in text
    theirs["dense_sb.0"] = theirs.pop("dense_bs.0")
    assert "dense_sb.0" in refused(plain, theirs, tmp_path)


def test_caches_in_a_released_file_are_left_unread(tmp_path: Path) -> None:
    model = mw.compile(RESIDUAL)
    ours, theirs = residual_file(model)
    theirs |= {"layers.0.attention.kv_cache.k_cache": torch.zeros(1), "freqs_cis": torch.zeros(2)}
    mw.import_weights(model, write(theirs, tmp_path / "w.safetensors"))
    assert torch.equal(model.get_parameter("heads.lm.weight"), ours["heads.lm.weight"])


# The catalogue


def test_names_of_entries_and_families_are_of_one_thing_each() -> None:
    zoo = catalogue()
    assert len(zoo.names) == sum(len(list(zoo._entries(family))) for family in zoo.families)
    assert not set(zoo.names) & set(zoo.bases), "a name would mean an entry and a family"
    for entry in zoo:
        assert mw.load(entry.name).name == entry.name
        assert zoo.family_of(mw.load(entry.name)) == entry.family


def test_a_spec_that_extends_an_entry_is_of_its_family() -> None:
    assert catalogue().family_of(mw.load(RESIDUAL)) == "mudd_pythia"
    with pytest.raises(MultiwayError) as caught:
        mw.rename_table(mw.load(RESIDUAL), "bert")
    assert caught.value.problems[0].code == "unknown-family"


def test_entries_are_found_by_pattern_beginning_and_family() -> None:
    def found(pattern: str) -> set[str]:
        return {entry.name for entry in catalogue().matching(pattern)}

    every = set(catalogue().names)
    assert found("*-test") == {name for name in every if name.endswith("-test")}
    assert found("mudd-pythia") == {name for name in every if name.startswith("mudd-pythia")}
    assert found("mudd_pythia") == found("mudd-pythia")
    assert found("nothing") == set()


def test_a_name_that_is_not_there_is_said_with_the_nearest() -> None:
    with pytest.raises(MultiwayError) as caught:
        mw.load("mudd-pythia-tset")
    (problem,) = caught.value.problems
    assert (problem.code, problem.nearest) == ("unknown-spec", MUDD)


def test_a_table_knows_every_dim_as_it_is() -> None:
    facts = mw.rename_table(mw.load("prenorm-test")).facts
    assert (facts["depth"], facts["ratio"], facts["wiring"]) == (3, 8 / 3, "residual")
