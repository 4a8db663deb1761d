"""What a loaded spec holds: typed values, layer by layer and head by head."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml

import multiway as mw
from multiway.specs.errors import MultiwayError
from multiway.specs.language.block import Rotary
from multiway.specs.language.inputs import Learned
from multiway.specs.text.source import parse
from multiway.zoo import catalogue

PARTS = Path(__file__).parent / "bad" / "parts"
PAIR = PARTS / "pair.yaml"
DECODER: dict[str, Any] = yaml.safe_load((PARTS / "decoder.yaml").read_text(encoding="utf-8"))


def with_block(**block: Any) -> dict[str, Any]:
    return {**DECODER, "block": {**DECODER["block"], **block}}


# The zoo, against the sizes that its papers and checkpoints state


def test_mudd_pythia() -> None:
    spec = mw.load("mudd-pythia-1.4b")
    assert (spec.name, spec.depth, spec.width, spec.origin) == (
        "mudd-pythia-1.4b",
        24,
        2048,
        "mudd-pythia-1.4b",
    )
    block = spec.blocks[0]
    assert (block.order, block.norm.kind, block.norm.eps) == ("parallel", "layer_norm", 1e-5)
    assert (block.attention.heads, block.attention.mask, block.attention.bias) == (
        16,
        "causal",
        True,
    )
    rotary = block.attention.position
    assert isinstance(rotary, Rotary)
    assert (rotary.fraction, rotary.base, rotary.pairs) == (0.25, 10000, "half")
    assert spec.wiring.mix.streams == ("q", "k", "v", "r")
    assert spec.heads["lm"].node["kind"].value == "causal_lm"
    assert spec.tokens_of("tokens") == 2048


def test_mudd_pythia_grows_with_depth() -> None:
    hidden = [block.ffn.hidden for block in mw.load("mudd-pythia-1.4b").blocks]
    assert (hidden[0], hidden[-1]) == (4096, 12288)  # half of 4 * 2048, and one and a half
    assert hidden == [round(8192 * (i / 23 + 0.5) / 128) * 128 for i in range(24)]
    assert hidden == sorted(hidden)


def test_muddformer_width_of_the_feed_forward() -> None:
    spec = mw.load("muddformer-2.8b")
    assert spec.dims["base"] == 6912
    assert all(block.ffn.gate for block in spec.blocks)


def test_mudd_generator_widths() -> None:
    generator = mw.load("mudd-pythia-1.4b").wiring.mix.generator
    assert generator is not None
    widths = {i: generator.hidden.count(ways=4, sources=i, last=False) for i in (2, 15, 16, 24)}
    # Four weights a source; as released, a multiple of 64 goes to the next one.
    assert widths == {2: 64, 15: 64, 16: 128, 24: 128}
    assert generator.hidden.count(ways=1, sources=25, last=True) == 128


def test_beit3() -> None:
    spec = mw.load("beit3-base")
    assert (spec.depth, spec.width, spec.modalities) == (12, 768, ("vision", "text"))
    assert spec.tokens_of("image") == 197
    assert spec.learned_rows("vision") == 199
    assert (spec.learned_rows("text"), spec.tokens_of("text")) == (1024, 1022)
    special = spec.inputs["text"].special
    assert special is not None
    assert (special.start, special.padding, special.end) == (0, 1, 2)
    assert spec.inputs_of("text") == ("text",)
    assert all(block.ffn.hidden == 3072 for block in spec.blocks)
    assert spec.blocks[0] is spec.blocks[11]


def test_beit3_heads_have_sizes_of_their_own() -> None:
    spec = mw.load("beit3-large")
    tokens = {name: spec.for_head(name).tokens_of("image") for name in spec.heads}
    assert tokens["imageclassification"] == (224 // 16) ** 2 + 1
    assert tokens["vqa"] == (480 // 16) ** 2 + 1
    assert tokens["vqa_384"] == (384 // 16) ** 2 + 1
    assert tokens["vqa_768"] == (768 // 16) ** 2 + 1
    assert spec.for_head("vqa").output.norm is None
    assert spec.for_head("nlvr2").output.norm is not None
    assert spec.tokens_of("image") == 197, "the spec itself is not changed by its heads"


@pytest.mark.parametrize("name", [entry.name for entry in catalogue()])
def test_every_zoo_entry_is_its_own_text(name: str) -> None:
    spec = mw.load(name)
    again = mw.load(parse(spec.text(), file="text"))
    assert again.text() == spec.text()
    assert dict(again.dims) == dict(spec.dims)
    assert (again.blocks, again.inputs) == (spec.blocks, spec.inputs)


def test_a_finished_spec_takes_no_settings() -> None:
    spec = mw.load(DECODER)
    assert mw.load(spec) is mw.load(spec, set={}) is spec
    for take in (mw.load, mw.build, mw.compile):
        with pytest.raises(MultiwayError) as caught:
            take(spec, set={"depth": 3, "block.order": "post"})
        assert str(caught.value) == (
            f"set: error[finished-spec]: {spec.name} is loaded, and takes no settings any more: "
            "depth, block.order\n"
            "  expected: settings where the spec is loaded: load(source, set=...)"
        )


# Layers


def test_blocks_that_read_no_layer_are_one_object() -> None:
    spec = mw.load(DECODER, set={"depth": 50})
    assert len({id(block) for block in spec.blocks}) == 1


@pytest.mark.parametrize(
    "block",
    [
        with_block(ffn={"hidden": "width + layer"}),
        with_block(norm={"kind": "rms_norm", "eps": "1e-6 / (layer + 1)"}),
    ],
)
def test_blocks_that_read_the_layer_are_made_for_each(block: dict[str, Any]) -> None:
    spec = mw.load(block)
    assert len({id(each) for each in spec.blocks}) == 2


def test_widths_by_layer() -> None:
    attention = {"heads": "2 * (layer + 1)", "mask": "causal"}
    document = with_block(
        attention=attention, ffn={"hidden": "round_to(width * (layer + 1) / 5, 8)"}
    )
    spec = mw.load(document, set={"depth": 4})
    assert [block.attention.heads for block in spec.blocks] == [2, 4, 6, 8]
    assert [block.ffn.hidden for block in spec.blocks] == [8, 16, 32, 40]


# Dims


def test_dims_in_any_order() -> None:
    dims = {"c": "b + 1", "b": "2 * a", "a": 3, "depth": "c - 5", "width": 48, "num_heads": 4}
    spec = mw.load({**DECODER, "dims": {**dims, "vocab": 10, "context": 8}})
    assert (spec.dims["c"], spec.depth) == (7, 2)


def test_whole_dims_are_ints_and_fractions_stay() -> None:
    """However a number is written, and also where a head changes it."""
    texts = {"half": "width / 2", "ratio": 2.5, "third": "1 / 3", "bits": "log(8) / log(2)"}
    heads = {"lm": {"kind": "causal_lm", "dims": {"ratio": "5.0"}}}
    dims = {**DECODER["dims"], "width": 4.8e1, **texts}
    spec = mw.load({**DECODER, "dims": dims, "heads": heads})
    found = {name: spec.dims[name] for name in ("depth", "width", *texts)}
    whole = {name: value for name, value in found.items() if isinstance(value, int)}
    assert whole == {"depth": spec.depth, "width": 48, "half": 24, "bits": 3}
    assert (found["ratio"], found["third"]) == (2.5, 1 / 3)
    assert repr(spec.for_head("lm").dims["ratio"]) == "5"


def test_a_long_chain_of_dims() -> None:
    chain = {f"d{i}": f"d{i + 1} + 1" for i in range(5000)}
    spec = mw.load({**DECODER, "dims": {**DECODER["dims"], **chain, "d5000": 1}})
    assert spec.dims["d0"] == 5001


def test_numbers_may_be_written_in_several_ways() -> None:
    dims = {
        "depth": "2",
        "width": 4.8e1,
        "num_heads": 4.0,
        "vocab": "1e2",
        "context": "0.8e1",
    }
    spec = mw.load({**DECODER, "dims": dims})
    assert (spec.depth, spec.width, spec.dims["vocab"]) == (2, 48, 100)
    assert spec.blocks[0].attention.heads == 4


def test_one_wrong_dim_is_said_once() -> None:
    document = {**DECODER, "dims": {**DECODER["dims"], "width": "base * 2", "base": "1 / 0"}}
    with pytest.raises(mw.MultiwayError) as found:
        mw.load(document)
    assert [problem.code for problem in found.value.problems] == ["division-by-zero"]


# Heads


def test_dims_of_a_head() -> None:
    document = yaml.safe_load(PAIR.read_text(encoding="utf-8"))
    document["dims"]["side"] = "image / patch"
    document["heads"]["caption"]["dims"] = {"image": "6 * patch", "patch": 16}
    spec = mw.load(document)
    chosen = spec.for_head("caption")
    assert (chosen.dims["image"], chosen.dims["patch"], chosen.dims["side"]) == (96, 16, 6)
    assert chosen.tokens_of("image") == 37
    assert chosen.head_name == "caption"
    assert (spec.dims["image"], spec.dims["side"]) == (32, 4)


def test_one_head_need_not_be_named() -> None:
    assert mw.load(DECODER).for_head().head_name == "lm"


def test_a_spec_keeps_what_it_made_for_a_head() -> None:
    spec = mw.load(PAIR)
    assert spec.for_head("match") is spec.for_head("match")


def test_a_head_of_a_head_is_that_of_the_spec() -> None:
    document = yaml.safe_load(PAIR.read_text(encoding="utf-8"))
    document["heads"]["caption"]["dims"] = {"image": 64}
    spec = mw.load(document)
    caption = spec.for_head("caption")
    assert caption.for_head("caption") is caption
    assert caption.for_head("match") is spec.for_head("match")
    assert caption.for_head("match").dims["image"] == spec.dims["image"] == 32


def test_specs_do_not_outlive_their_use() -> None:
    spec = mw.load(PAIR)
    spec.for_head("match")
    reference = weakref.ref(spec)
    del spec
    gc.collect()
    assert reference() is None


# Inputs


def test_tokens_of_inputs() -> None:
    spec = mw.load(PAIR)
    assert spec.tokens_of("image") == 17
    assert spec.tokens_of("text") == 32
    assert spec.learned_rows("vision") == 17
    assert mw.load(PAIR, set={"inputs.text.context": 7}).tokens_of("text") == 7
    free = mw.load(PAIR, set={"embed.text.position": None})
    assert free.tokens_of("text") is None


def test_rows_follow_from_the_longest_input() -> None:
    spec = mw.load(
        PAIR,
        set={
            "embed.text.position.rows": None,
            "inputs.text.context": 9,
            "inputs.question": {"modality": "text", "vocab": "vocab", "context": 20},
        },
    )
    assert spec.learned_rows("text") == 22
    assert spec.inputs_of("text") == ("text", "question")
    assert isinstance(spec.embed["text"].position, Learned)


# Sources


def test_sources_of_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "decoder.yaml"
    path.write_text(yaml.safe_dump(DECODER, sort_keys=False))
    spec = mw.load(path)
    for source in (str(path), DECODER, parse(path.read_text(), file="x"), spec):
        assert mw.load(source).text() == spec.text()


def test_a_mapping_is_not_changed() -> None:
    before = yaml.safe_dump(DECODER)
    mw.load(DECODER, set={"depth": 3})
    assert yaml.safe_dump(DECODER) == before


def test_a_mapping_may_hold_a_part_twice() -> None:
    norm = {"kind": "rms_norm", "eps": 1e-6}
    spec = mw.load({**with_block(norm=norm), "output": {"norm": norm}})
    assert spec.output.norm is not None
    assert spec.output.norm.eps == spec.blocks[0].norm.eps == 1e-6


def test_loading_imports_no_torch() -> None:
    code = (
        "import sys, multiway as mw; spec = mw.load('beit3-test'); mw.build(spec, head='vqa');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
