"""Pythia against transformers' GPT-NeoX: logits, gradients, cached decoding, weights both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import multiway as mw
from multiway.runtime.checkpoints.weights import export_weights
from multiway.runtime.generation.greedy import greedy
from multiway.runtime.model import Model

transformers = pytest.importorskip("transformers")

SIZES = [
    {"depth": 3, "width": 64, "num_heads": 4, "vocab": 97, "fraction": 0.25},
    {"depth": 2, "width": 96, "num_heads": 6, "vocab": 250, "fraction": 0.5},
]
TOTALS = {
    "70m": 70_426_624,
    "160m": 162_322_944,
    "410m": 405_334_016,
    "1b": 1_011_781_632,
    "1.4b": 1_414_647_808,
    "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016,
    "12b": 11_846_072_320,
}


@pytest.fixture(params=SIZES, ids=lambda size: f"{size['depth']}x{size['width']}")
def pair(request: Any, tmp_path: Path) -> tuple[Any, Model, Path]:
    """A GPT-NeoX with random weights, saved in shards, and a Pythia that read them."""
    size = request.param
    config = transformers.GPTNeoXConfig(
        vocab_size=size["vocab"],
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["num_heads"],
        intermediate_size=4 * size["width"],
        max_position_embeddings=64,
        hidden_act="gelu",
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000,
            "partial_rotary_factor": size["fraction"],
        },
    )
    torch.manual_seed(0)
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    dims = {name: size[name] for name in ("depth", "width", "num_heads", "vocab")}
    fraction = {"block.attention.position.fraction": size["fraction"]}
    ours = mw.compile("pythia-test", set={**dims, **fraction})
    mw.import_weights(ours, tmp_path)
    return theirs, ours, tmp_path


def test_logits_and_gradients(pair: tuple[Any, Model, Path], tmp_path: Path) -> None:
    theirs, ours, _ = pair
    tokens = torch.randint(0, ours.spec.inputs["tokens"].vocab or 0, (2, 17))
    expected = theirs(tokens)
    torch.testing.assert_close(ours(tokens=tokens), expected.logits, atol=1e-5, rtol=1e-5)
    theirs(tokens, labels=tokens).loss.backward()
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    ours.loss(tokens=tokens, labels=labels)[0].backward()
    # Gradients travel as weights do: through files, ours by the rename table, theirs by save.
    with torch.no_grad():
        for model in (theirs, ours):
            for parameter in model.parameters():
                parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "grads")
    export_weights(ours, tmp_path / "ours.safetensors", mw.rename_table(ours.spec))
    want = load_file(tmp_path / "grads" / "model.safetensors")
    got = load_file(tmp_path / "ours.safetensors")
    assert got.keys() == want.keys()
    for name, value in want.items():
        worst = float((got[name] - value).abs().max())
        assert worst <= 1e-4 * float(value.abs().max()) + 1e-6, name


def test_cached_decoding(pair: tuple[Any, Model, Path]) -> None:
    theirs, ours, _ = pair
    prompt = torch.randint(0, 97, (1, 7))
    want = theirs.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=None)
    (got,) = greedy(ours, [prompt[0].tolist()], tokens=9)
    assert got == want[0, 7:].tolist()


def test_export_gives_the_files_back_bitwise(pair: tuple[Any, Model, Path]) -> None:
    _, ours, folder = pair
    mw.export_weights(ours, folder / "back.bin")
    again = mw.compile(ours.spec, seed=9)
    mw.import_weights(again, folder / "back.bin")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(("size", "total"), TOTALS.items())
def test_totals(size: str, total: int) -> None:
    graph = mw.build(f"pythia-{size}")
    assert sum(param.size for param in graph.params.values()) == total
