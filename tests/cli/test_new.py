"""multiway new: what it writes works as it is, in a checkout and elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import multiway as mw
from multiway import scaffold
from multiway.cli import app
from multiway.commands import new
from multiway.specs import plugins

ROOT = Path(mw.__file__).resolve().parents[1]
KINDS = list(scaffold.KINDS)


def run(*words: str) -> str:
    return CliRunner().invoke(app, list(words), catch_exceptions=False).output


def refused(*words: str) -> mw.MultiwayError:
    with pytest.raises(mw.MultiwayError) as found:
        run(*words)
    return found.value


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_data_elsewhere_is_found_at_once(here: Path) -> None:
    assert "wrote    multiway.toml" in run("new", "wiring", "own_wiring")
    assert "multiway.toml" not in run("new", "family", "own_family")
    spec = mw.load("own-family-test", set={"wiring": "own_wiring", "depth": 3})
    learned = [name for name in mw.build(spec).params if "edges" in name]
    assert learned == ["blocks.2.edges.0.static"]


@pytest.mark.parametrize("kind", ["op", "fusion", "head"])
def test_code_elsewhere_is_a_plugin(here: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"made_{kind}"
    assert f"wrote    {name}.py" in run("new", kind, name)
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    monkeypatch.setattr(sys, "path", [*sys.path, str(here)])
    mw.use_plugin(name)
    try:
        if kind == "op":
            graph = mw.build("prenorm-test", set={"block.ffn.activation": name})
            assert [record.op for record in graph].count(name) == 3
        elif kind == "fusion":
            model = mw.compile("prenorm-test", set={"wiring": "layer_scale"})
            ops = [record.op for record in model._source.stages["forward"][-1].graph]
            assert ops.count(name) == 6
        else:
            spec = {"extends": "prenorm-test", "name": "x", "heads": {"own": {"kind": name}}}
            assert mw.compile(spec, head="own").programs.main == "forward"
    finally:
        plugins.forget(name)
        del sys.modules[name]


@pytest.mark.parametrize("name", ["", "Own", "own-op", "../own", "a b", "class", "3x", "own.op"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_none(here: Path, kind: str, name: str) -> None:
    assert [each.code for each in refused("new", kind, name).problems] == ["bad-name"]
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("kind", "name"),
    list(zip(KINDS, ["mudd", "linear", "fused_mix", "causal_lm", "pythia"], strict=True)),
)
def test_names_that_are_taken(here: Path, kind: str, name: str) -> None:
    assert [each.code for each in refused("new", kind, name).problems] == ["duplicate-name"]
    assert not list(here.iterdir())


def test_nothing_is_replaced_and_nothing_half_written(here: Path) -> None:
    assert [each.code for each in refused("new", "opp", "x").problems] == ["unknown-value"]
    (here / "own_op.py").write_text("mine")
    assert [each.code for each in refused("new", "op", "own_op").problems] == ["file-exists"]
    assert (here / "own_op.py").read_text() == "mine"
    (here / "families").write_text("a file where a folder is wanted")
    assert [each.code for each in refused("new", "family", "own").problems] == ["unwritable"]
    assert {path.name for path in here.iterdir()} == {"own_op.py", "families"}


def test_what_was_written_is_taken_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_the_third(path: Path, text: str) -> None:
        if path.name == "card.yaml":
            raise mw.MultiwayError.one("unwritable", "no space left", place=str(path))
        path.write_text(text)

    monkeypatch.setattr(new, "write_text", fails_at_the_third)
    assert [each.code for each in refused("new", "family", "own").problems] == ["unwritable"]
    assert not list(here.iterdir())


def checkout(folder: Path) -> Path:
    """A copy of the files of this checkout."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout to copy")
def test_a_checkout_with_all_of_them_passes_its_tests(tmp_path: Path) -> None:
    """Everything that lists a registry, and what holds the documents: no test is edited."""
    root = checkout(tmp_path / "copy")
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    main = "from multiway.cli import main; main()"
    for kind in KINDS:
        assert "wrote" in call("-c", main, "new", kind, f"own_{kind}")
    call("tests/docs/written.py")
    found = call(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--ignore=tests/cli/test_new.py",
        "-m", "not slow and not gpu and not fuzz", "tests/docs", "tests/specs",
        "tests/zoo", "tests/compiler/ops", "tests/compiler/fusions", "tests/compiler/heads",
        "tests/compiler/assemble", "tests/compiler/test_properties.py", "tests/runtime/tasks",
    )  # fmt: skip
    assert " passed" in found
