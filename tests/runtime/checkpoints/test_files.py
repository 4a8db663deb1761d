"""Checkpoints: every family there and back, shards, other resolutions, fresh heads, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from members import members
from safetensors.torch import load_file, save_file

import multiway as mw
from multiway.runtime.checkpoints.files import open_checkpoint
from multiway.runtime.checkpoints.weights import resize_positions
from multiway.runtime.model import Model
from multiway.specs import MultiwayError

MEMBERS = [
    each
    for each in members(apart=False)
    if each.values[1] not in ("mlm", "mim")  # no released checkpoint has them
]


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def noisy(model: Model) -> Model:
    """Weights in which every number differs, norms and zeros too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("name", "head"), MEMBERS)
def test_every_family_goes_out_and_in_bitwise(
    name: str, head: str, suffix: str, tmp_path: Path
) -> None:
    model = noisy(mw.compile(name, head=head))
    mw.export_weights(model, tmp_path / f"a{suffix}")
    again = mw.compile(name, head=head, seed=4)
    mw.import_weights(again, tmp_path / f"a{suffix}")
    assert same(model.state_dict(), again.state_dict())
    mw.export_weights(again, tmp_path / f"b{suffix}")
    first, second = (open_checkpoint(tmp_path / f"{x}{suffix}", unwrap=("model",)) for x in "ab")
    assert same(dict(first), dict(second))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"a{suffix}", f"b{suffix}"]


def shards_of(model: Model, folder: Path, *, torch_files: bool) -> None:
    """The model's released form in two shards with an index."""
    mw.export_weights(model, folder / "whole.safetensors")
    tensors = load_file(folder / "whole.safetensors")
    (folder / "whole.safetensors").unlink()
    stem, suffix = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
    where = {}
    for i in (0, 1):
        part = {name: value for j, (name, value) in enumerate(tensors.items()) if j % 2 == i}
        shard = f"{stem}-0000{i + 1}-of-00002.{suffix}"
        torch.save(part, folder / shard) if torch_files else save_file(part, folder / shard)
        where |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("torch_files", [False, True])
def test_shards_are_read_from_their_folder(tmp_path: Path, torch_files: bool) -> None:
    model = noisy(mw.compile("mudd-pythia-test"))
    shards_of(model, tmp_path, torch_files=torch_files)
    again = mw.compile("mudd-pythia-test")
    mw.import_weights(again, tmp_path)
    assert same(model.state_dict(), again.state_dict())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: next(f.glob("*00002-of*")).unlink(), "there is no such file"),
        (lambda f: next(f.glob("*00002-of*")).write_bytes(b"x"), "not a whole safetensors"),
        (lambda f: next(f.glob("*.json")).write_text("[]"), "not an index"),
        (lambda f: next(f.glob("*.json")).write_text('{"weight_map": {"a": "../b"}}'), "beside it"),
        (lambda f: next(f.glob("*.json")).write_text('{"weight_map": {"a": 3}}'), "does not map"),
        (lambda f: next(f.glob("*.json")).unlink(), "holds no checkpoint"),
    ],
)
def test_a_broken_index_changes_nothing(tmp_path: Path, break_it: object, message: str) -> None:
    shards_of(noisy(mw.compile("pythia-test")), tmp_path, torch_files=False)
    break_it(tmp_path)  # type: ignore[operator]
    model = mw.compile("pythia-test")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MultiwayError, match=message):
        mw.import_weights(model, tmp_path)
    assert same(before, model.state_dict())
    assert model.random


def cubic(x: float) -> float:
    """The kernel of bicubic interpolation, a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_matrix(old: int, new: int) -> torch.Tensor:
    """[new, old]: the weights of one axis, corners not aligned, edges repeated."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for j in range(int(place // 1) - 1, int(place // 1) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(place - j)
    return matrix


@pytest.mark.parametrize("new", [4, 9])
def test_positions_are_resized_as_an_image(new: int) -> None:
    old, keep = 6, 3
    table = torch.randn(keep + old * old, 2, generator=torch.Generator().manual_seed(0))
    found = resize_positions(table, keep + new * new, keep=keep)
    assert torch.equal(found[:keep], table[:keep])
    matrix = resize_matrix(old, new)
    grid = table[keep:].double().reshape(old, old, 2)
    want = torch.einsum("io,jp,opd->ijd", matrix, matrix, grid).reshape(new * new, 2)
    torch.testing.assert_close(found[keep:].double(), want, atol=1e-5, rtol=1e-5)
    assert torch.equal(resize_positions(table, len(table), keep=keep), table)


def test_another_resolution_is_loaded(tmp_path: Path) -> None:
    small = noisy(mw.compile("beit3-test", head="vqa"))
    mw.export_weights(small, tmp_path / "small.pth")
    large = mw.compile("beit3-test", head="vqa", set={"vqa_image": 64})
    loaded = mw.import_weights(large, tmp_path / "small.pth")
    name = "embed.vision.position.weight"
    assert loaded.resized == [name]
    want = resize_positions(small.get_parameter(name).detach(), 64 + 3, keep=3)
    assert torch.equal(large.get_parameter(name), want)
    assert torch.equal(large.get_parameter("embed.vision.cls"), small.embed.vision.cls)
    other = mw.compile("beit3-test", head="vqa", set={"text_positions": 80})
    with pytest.raises(MultiwayError, match=r"embed_positions.B.weight is \[64, 48\]"):
        mw.import_weights(other, tmp_path / "small.pth")


@pytest.mark.parametrize(("source", "target"), [("retrieval", "vqa"), ("vqa", "nlvr2")])
def test_a_fresh_head_on_a_loaded_backbone(source: str, target: str, tmp_path: Path) -> None:
    old = noisy(mw.compile("beit3-test", head=source))
    mw.export_weights(old, tmp_path / "old.pth")
    new = mw.compile("beit3-test", head=target, seed=3)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(MultiwayError, match="these are not the weights"):
        mw.import_weights(new, tmp_path / "old.pth")
    loaded = mw.import_weights(new, tmp_path / "old.pth", fresh_head=True)
    for name, value in new.state_dict().items():
        if name in loaded.fresh:
            assert torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, old.state_dict()[name]), name
    assert all(name.startswith(("heads.", "output.norm")) for name in loaded.fresh)
    assert any(name.startswith(f"heads.{target}") for name in loaded.fresh)


def test_the_wrong_family_is_refused(tmp_path: Path) -> None:
    mw.export_weights(mw.compile("pythia-test"), tmp_path / "pythia.bin")
    model = mw.compile("mudd-pythia-test")
    with pytest.raises(MultiwayError) as error:
        mw.import_weights(model, tmp_path / "pythia.bin")
    assert "tok_embeddings.weight" in str(error.value), "what is missing is listed"
    assert "gpt_neox.embed_in.weight" in str(error.value), "what is too much is listed"
    with pytest.raises(MultiwayError, match="there is no family 'bert'"):
        mw.import_weights(model, tmp_path / "pythia.bin", family="bert")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_needs_the_memory_of_the_model_once(tmp_path: Path) -> None:
    settings = {"depth": 4, "width": 768, "num_heads": 12, "vocab": 16384}
    mw.export_weights(mw.compile("pythia-test", set=settings), tmp_path / "big.safetensors")
    code = f"""
import re, multiway as mw
from multiway.compiler.compile import compile_spec
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
spec = mw.load("pythia-test", set={settings})
before = own()
model = compile_spec(spec, fill=False)
mw.import_weights(model, {str(tmp_path / "big.safetensors")!r})
size = sum(p.numel() for p in model.parameters()) * 4
print((own() - before) / size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.25, "more than the model itself was held"
