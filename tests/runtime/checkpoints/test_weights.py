"""Native files: there and back bitwise, refused as a whole, never run, never left half written."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import multiway as mw
from multiway.runtime.checkpoints.weights import load_weights, read_tensors
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError
from multiway.zoo import catalogue

MEMBERS = [
    pytest.param(name, head, id=f"{name}-{head}")
    for name in catalogue().names
    if name.endswith("-test")
    for head in mw.load(name).heads
]
NAME = "mudd-pythia-test"


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(model: Model, path: Path) -> MultiwayError:
    """The error with which a file is refused; nothing in the model has changed then."""
    before = state(model)
    with pytest.raises(MultiwayError) as caught:
        load_weights(model, path)
    assert same(before, state(model))
    assert model.random
    return caught.value


@pytest.fixture
def model() -> Model:
    return mw.compile(NAME, seed=1)


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    mw.save(mw.compile(NAME, seed=2), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


# There and back


@pytest.mark.parametrize(("name", "head"), MEMBERS)
def test_weights_come_back_bitwise(name: str, head: str, tmp_path: Path) -> None:
    first, second = (mw.compile(name, head=head, seed=seed) for seed in (1, 2))
    assert not same(state(first), state(second))
    mw.save(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert same(state(first), state(second))
    assert (first.random, second.random) == (True, False)
    assert same(
        state(mw.compile(name, head=head, weights=tmp_path / "w.safetensors")), state(first)
    )


def test_a_file_holds_every_parameter_under_its_path_and_says_what_it_is(saved: Path) -> None:
    params = mw.build(NAME).params
    assert {n: tuple(t.shape) for n, t in load_file(saved).items()} == {
        path: param.shape for path, param in params.items()
    }
    with safe_open(saved, framework="pt") as file:
        assert file.metadata() == {"format": "multiway", "spec": NAME, "head": "lm"}
    assert oct(saved.stat().st_mode & 0o777) == "0o644"


def test_a_file_fits_a_model_of_another_type(saved: Path) -> None:
    narrow = mw.compile(NAME, dtype=torch.bfloat16)
    load_weights(narrow, saved)
    for name, value in load_file(saved).items():
        assert torch.equal(narrow.get_parameter(name), value.bfloat16())


def test_programs_see_weights_that_are_loaded_after_they_were_made(saved: Path) -> None:
    model, tokens = mw.compile(NAME, seed=1), torch.arange(6)[None]
    before = model(tokens=tokens)
    load_weights(model, saved)
    assert not torch.equal(model(tokens=tokens), before)
    assert torch.equal(model(tokens=tokens), mw.compile(NAME, seed=2)(tokens=tokens))


def test_a_plain_torch_file_with_spec_paths_is_read(tmp_path: Path, model: Model) -> None:
    torch.save(mw.compile(NAME, seed=2).state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert same(state(model), state(mw.compile(NAME, seed=2)))


# Refused as a whole


def test_the_weights_of_another_head_are_refused_with_every_name(tmp_path: Path) -> None:
    model = mw.compile("beit3-test", head="vqa")
    other = mw.compile("beit3-test", head="retrieval")
    mw.save(other, tmp_path / "w.safetensors")
    error = refused(model, tmp_path / "w.safetensors")
    text = str(error)
    own, theirs = set(model.state_dict()), set(other.state_dict())
    assert error.problems[0].code == "weights-do-not-fit"
    assert f"{len(own - theirs)} missing, {len(theirs - own)} not of this model" in text
    assert "; nothing was loaded" in text
    for name in own ^ theirs:
        assert re.search(rf"^    {re.escape(name)}( \(|$)", text, re.M), name


def test_the_weights_of_another_family_are_refused_with_every_name(
    tmp_path: Path, model: Model
) -> None:
    other = mw.compile("muddformer-test")
    mw.save(other, tmp_path / "w.safetensors")
    text = str(refused(model, tmp_path / "w.safetensors"))
    own, theirs = model.state_dict(), other.state_dict()
    for name in own.keys() ^ theirs.keys():
        assert name in text
    for name in own.keys() & theirs.keys():
        if own[name].shape != theirs[name].shape:
            assert f"{name} is {list(theirs[name].shape)}, needs {list(own[name].shape)}" in text


def test_one_missing_extra_and_misshaped_tensor_are_listed(saved: Path, model: Model) -> None:
    tensors = load_file(saved)
    del tensors["output.norm.bias"]
    tensors["heads.lm.wait"] = torch.zeros(1)
    tensors["blocks.0.ffn.up.weight"] = tensors["blocks.0.ffn.up.weight"][:3].clone()
    save_file(tensors, saved)
    assert str(refused(model, saved)) == (
        f"{saved}: error[weights-do-not-fit]: these are not the weights of {NAME}, head lm: "
        "1 missing, 1 wrong shape, 1 not of this model; nothing was loaded\n"
        "  missing:           \n"
        "    output.norm.bias\n"
        "  wrong shape:       \n"
        "    blocks.0.ffn.up.weight is [3, 64], needs [128, 64]\n"
        "  not of this model: \n"
        "    heads.lm.wait"
    )


def test_a_missing_tensor_that_is_misspelt_is_found(saved: Path, model: Model) -> None:
    tensors = load_file(saved)
    tensors["output.norm.bais"] = tensors.pop("output.norm.bias")
    save_file(tensors, saved)
    assert "output.norm.bais (like output.norm.bias)" in str(refused(model, saved))


# Files that are no weights


def test_a_truncated_file_is_refused(saved: Path, model: Model) -> None:
    whole = saved.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        error = refused(model, saved)
        assert error.problems[0].code == "broken-weights"
        assert "not a whole safetensors file" in str(error)


def test_a_truncated_torch_file_is_refused(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "w.pth"
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refused(model, path).problems[0].code == "broken-weights"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    "content",
    [b"", bytes(4096), b"\xff" * 4096, b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100), b"{}"],
    ids=["empty", "zeros", "ones", "empty-pickle", "half-zip", "json"],
)
def test_a_file_of_something_else_is_refused(
    suffix: str, content: bytes, tmp_path: Path, model: Model
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    error = refused(model, path)
    assert error.problems[0].code == "broken-weights"
    assert "code in a checkpoint" not in str(error), "there is none in this one"


class Touches:
    """Unpickled by pickle itself, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "pickle", "nested"])
def test_code_in_a_checkpoint_is_not_run(how: str, tmp_path: Path, model: Model) -> None:
    target, path = tmp_path / "touched", tmp_path / "w.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"w": Touches(target)}, protocol=2))
    else:
        bad = {"w": Touches(target)}
        torch.save({"model": bad} if how == "nested" else bad, path)
    error = refused(model, path)
    assert not target.exists()
    assert error.problems[0].message == (
        "holds more than tensors, and code in a checkpoint is never run"
    )
    pickle.loads(pickle.dumps(Touches(target))).close()
    assert target.exists(), "it would have run"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds no state dict"),
        ({}, "holds no state dict"),
        (torch.zeros(1), "holds no state dict"),
        ({"a": torch.zeros(1), "epoch": 3}, "not a state dict: 'epoch' is no tensor"),
    ],
    ids=["list", "empty", "tensor", "number"],
)
def test_a_torch_file_without_a_state_dict_is_refused(
    content: object, message: str, tmp_path: Path, model: Model
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert refused(model, tmp_path / "w.pth").problems[0].message == message


def test_what_is_no_file_is_refused(tmp_path: Path, model: Model) -> None:
    missing = tmp_path / "missing.safetensors"
    assert str(refused(model, missing)) == (
        f"{missing}: error[no-such-file]: there is no such file"
    )
    assert "error[no-such-file]: this folder holds no checkpoint" in str(refused(model, tmp_path))


def test_a_file_that_cannot_be_read_is_refused(
    saved: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("multiway.runtime.checkpoints.files.safe_open", fail)
    assert str(refused(model, saved)) == (
        f"{saved}: error[unreadable]: cannot be read: Permission denied"
    )


def test_tensors_are_listed_without_being_read(saved: Path) -> None:
    tensors = read_tensors(saved)
    assert set(tensors) == set(mw.build(NAME).params)
    assert "nothing" not in tensors
    with pytest.raises(KeyError):
        tensors["nothing"]


# Never left half written


def in_a_missing_folder(folder: Path, _: pytest.MonkeyPatch) -> Path:
    return folder / "missing" / "w.safetensors"


def below_a_file(folder: Path, _: pytest.MonkeyPatch) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "w.safetensors"


def over_a_folder(folder: Path, _: pytest.MonkeyPatch) -> Path:
    (folder / "w.safetensors").mkdir()
    return folder / "w.safetensors"


def on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fail(tensors: object, name: str, **_: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiway.runtime.checkpoints.weights.save_file", fail)
    return folder / "w.safetensors"


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", fail)
    return folder / "w.safetensors"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (in_a_missing_folder, "No such file or directory"),
        (below_a_file, "Not a directory"),
        (over_a_folder, "Is a directory"),
        (on_a_full_disk, "No space left on device"),
        (read_only, "Permission denied"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_failed_write_is_reported_and_leaves_nothing(
    where: Callable[[Path, pytest.MonkeyPatch], Path],
    reason: str,
    tmp_path: Path,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = where(tmp_path, monkeypatch)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(MultiwayError) as caught:
        mw.save(model, path)
    assert str(caught.value) == f"{path}: error[unwritable]: cannot write: {reason}"
    assert sorted(os.listdir(tmp_path)) == before


def test_a_failed_write_keeps_the_file_that_was_there(
    saved: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    on_a_full_disk(saved.parent, monkeypatch)
    with pytest.raises(MultiwayError):
        mw.save(model, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multiway.runtime.checkpoints.weights.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mw.save(model, tmp_path / "w.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_number_has_an_axis_or_none(tmp_path: Path) -> None:
    """Parameters of one number are [1]; other people's files, and older ones, have []."""
    first = mw.compile("beit3-test", head="retrieval", seed=1)
    scale = "heads.retrieval.scale"
    with torch.no_grad():
        first.get_parameter(scale).fill_(1.25)
    mw.export_weights(first, tmp_path / "theirs.safetensors")
    mw.save(first, tmp_path / "ours.safetensors")
    theirs, ours = (load_file(tmp_path / f"{name}.safetensors") for name in ("theirs", "ours"))
    assert theirs["logit_scale"].shape == () and ours[scale].shape == (1,)
    for tensors, read in (
        (theirs, mw.import_weights),
        (theirs | {"logit_scale": torch.tensor([1.25])}, mw.import_weights),
        (ours | {scale: torch.tensor(1.25)}, load_weights),
    ):
        save_file(tensors, tmp_path / "w.safetensors")
        other = mw.compile("beit3-test", head="retrieval", seed=2)
        read(other, tmp_path / "w.safetensors")
        assert other.get_parameter(scale).tolist() == [1.25]
