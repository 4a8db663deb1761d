"""ViT against transformers' own: logits, gradients, released names and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import multiway as mw

transformers = pytest.importorskip("transformers")


def test_a_vit_is_that_of_transformers(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=10,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = mw.compile("vit-test")
    mw.import_weights(ours, tmp_path / "model.safetensors")
    image, labels = torch.randn(2, 3, 32, 32), torch.tensor([3, 7])
    found = theirs(pixel_values=image, labels=labels)
    torch.testing.assert_close(ours(image=image), found.logits, rtol=1e-5, atol=1e-5)
    loss, _ = ours.loss(image=image, labels=labels)
    torch.testing.assert_close(loss, found.loss)
    loss.backward()
    found.loss.backward()
    own = dict(ours.named_parameters())
    for mine, name in (
        ("embed.vision.patch.weight", "vit.embeddings.patch_embeddings.projection.weight"),
        ("blocks.0.attention.query.weight", "vit.layers.0.attention.q_proj.weight"),
        ("blocks.2.ffn.down.bias", "vit.layers.2.mlp.fc2.bias"),
        ("heads.classes.classes.weight", "classifier.weight"),
    ):
        want = theirs.get_parameter(name).grad
        torch.testing.assert_close(own[mine].grad, want, rtol=1e-4, atol=1e-6)


def test_a_small_vit_has_22_million_parameters() -> None:
    model = mw.compile("vit-s16", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 22_050_664
