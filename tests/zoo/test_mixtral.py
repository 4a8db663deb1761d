"""Mixtral against transformers' own: logits, gradients, decoding, losses of routers, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import multiway as mw
from multiway.compiler.analysis.costs import costs, total
from multiway.runtime.checkpoints.weights import export_weights
from multiway.runtime.generation.greedy import greedy
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError

transformers = pytest.importorskip("transformers")

WEIGHT = 0.02
PUBLISHED = {  # billions of parameters, all and those that a token meets
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (140.6, 39.1),
    "deepseek-moe-16b": (16.4, 2.8),
    "transformer-moe-1.8b": (1.87, 0.41),
    "mudd-moe-1.8b": (1.87, 0.41),
}


@pytest.fixture(params=[True, False], ids=["fused", "reference"])
def pair(request: Any, tmp_path: Path) -> tuple[Any, Model, Path]:
    """A Mixtral with random weights, saved, and ours that read them."""
    config = transformers.MixtralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        router_aux_loss_coef=WEIGHT,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    theirs = transformers.MixtralForCausalLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = mw.compile("mixtral-test", set={"depth": 3, "vocab": 97}, fuse=request.param)
    mw.import_weights(ours, tmp_path)
    return theirs, ours, tmp_path


def test_logits_losses_and_gradients(pair: tuple[Any, Model, Path], tmp_path: Path) -> None:
    theirs, ours, _ = pair
    tokens = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    found = theirs(tokens, labels=tokens, output_router_logits=True)
    torch.testing.assert_close(ours(tokens=tokens), found.logits, atol=1e-5, rtol=1e-5)
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    loss, metrics = ours.loss(tokens=tokens, labels=labels)
    torch.testing.assert_close(metrics["balance"], found.aux_loss)
    torch.testing.assert_close(loss, found.loss)
    torch.testing.assert_close(metrics["task"] + WEIGHT * metrics["balance"], loss)
    assert metrics["balance"] > 2.001, "as if all experts were used alike"
    found.loss.backward()
    loss.backward()
    # Gradients travel as weights do: through files, ours by the rename table, theirs by save.
    with torch.no_grad():
        for model in (theirs, ours):
            for parameter in model.parameters():
                assert parameter.grad is not None and parameter.grad.abs().max() > 0
                parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "grads")
    export_weights(ours, tmp_path / "ours.safetensors", mw.rename_table(ours.spec))
    mine, wanted = load_file(tmp_path / "ours.safetensors"), {}
    for file in (tmp_path / "grads").glob("*.safetensors"):
        wanted |= load_file(file)
    assert mine.keys() == wanted.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, wanted[name], atol=2e-6, rtol=1e-4, msg=name)


def test_cached_decoding(pair: tuple[Any, Model, Path]) -> None:
    theirs, ours, _ = pair
    tokens = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(2))
    wanted = theirs.generate(
        tokens, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert greedy(ours, tokens.tolist(), tokens=9) == wanted[:, 7:].tolist()


def test_what_is_written_is_what_was_read(pair: tuple[Any, Model, Path], tmp_path: Path) -> None:
    _, ours, folder = pair
    export_weights(ours, tmp_path / "again.safetensors", mw.rename_table(ours.spec))
    again = load_file(tmp_path / "again.safetensors")
    read = load_file(folder / "model.safetensors")
    assert again.keys() == read.keys()
    assert all(torch.equal(value, read[name]) for name, value in again.items())
    assert "model.layers.2.block_sparse_moe.experts.3.w2.weight" in again


def test_a_missing_expert_is_named_and_nothing_is_read(
    pair: tuple[Any, Model, Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    _, ours, folder = pair
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    tensors[name.replace("2.w1", "9.w1")] = tensors.pop(name)
    save_file(tensors, tmp_path / "bad.safetensors")
    before = {n: p.detach().clone() for n, p in ours.named_parameters()}
    with pytest.raises(MultiwayError) as caught:
        mw.import_weights(ours, tmp_path / "bad.safetensors")
    text = str(caught.value)
    assert "1 missing, 1 not of this model; nothing was loaded" in text
    assert f"{name} (for blocks.1.ffn.gate.weight)" in text
    assert all(torch.equal(p, before[n]) for n, p in ours.named_parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name: str) -> None:
    found = total(costs(mw.build(name), {"B": 1, "T": 16}))
    every, active = PUBLISHED[name]
    assert found.parameters / 1e9 == pytest.approx(every, rel=0.01)
    assert found.active / 1e9 == pytest.approx(active, rel=0.015)
