"""Code of one's own: a module's ops, heads, fusions, passes and kernels stand beside multiway's."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch

import multiway as mw
from multiway.commands import schema as schema_command
from multiway.compiler.graph.registry import registry
from multiway.compiler.heads import kinds
from multiway.compiler.pipeline import Options
from multiway.runtime.kernels import kernels
from multiway.specs import plugins

OP = """
from multiway.compiler.graph.op import Op, Sample


def twice(x):
    return x + x


OP = Op(
    signature="x[*] -> y[*]",
    reference=twice,
    formula=lambda x: 2 * x,
    doc="2 x",
    saves=(),
    elementwise=True,
    samples=[Sample(shapes={"x": (2,)})],
)
"""
HEAD = """
from dataclasses import dataclass
from typing import Literal

from multiway.compiler.heads.features import Features
from multiway.specs.language.fields import key


@dataclass(frozen=True, kw_only=True)
class Hidden(Features):
    kind: Literal["hidden"] = key("hidden", default="hidden")


HEAD = Hidden
"""
PASS = """
from multiway.compiler.pipeline import Pass


def count(graph, tally, options):
    tally.numbers["nodes"] = len(graph)
    return graph


PASS = Pass(name="count_nodes", does="counts nodes", kind="analysis", run=count)
"""
KERNELS = """
import torch

from multiway.runtime.kernels.kernel import Kernel

CALLS = []


def run(x):
    CALLS.append(tuple(x.shape))
    return torch.mul(x, 2)


KERNELS = [Kernel(op="twice", run=run, doc="one multiplication")]
"""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    for name in plugins.plugins():
        plugins.forget(name)
    for name in [each for each in sys.modules if each.startswith("own_")]:
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where installed modules lie; the working directory is another folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return site


def package(site: Path, name: str = "own_parts", **files: str) -> str:
    folder = site / name
    folder.mkdir()
    importlib.invalidate_caches()
    (folder / "__init__.py").touch()
    for module, text in files.items():
        (folder / f"{module}.py").write_text(text)
    return name


def refused(name: str | ModuleType) -> str:
    before = set(registry()), set(kinds().classes), plugins.plugins()
    with pytest.raises(mw.MultiwayError) as found:
        mw.use_plugin(name)
    assert (set(registry()), set(kinds().classes), plugins.plugins()) == before
    return str(found.value)


def test_a_package_of_parts(installed: Path) -> None:
    name = package(installed, op=OP, head=HEAD, own_pass=PASS, kernels=KERNELS)
    mw.use_plugin(name)
    mw.use_plugin(name)  # once more changes nothing
    assert "own_parts.kernels" not in sys.modules, "a kernel may import torch"
    spec = mw.load("prenorm-test", set={"block.ffn.activation": "twice"})
    assert [record.op for record in mw.build(spec)].count("twice") == 3
    assert "hidden" in kinds().classes
    assert "count_nodes" in [each.name for each in Options().pipeline()]
    model = mw.compile(spec, head="lm")
    tokens = torch.arange(5)[None]
    found = model(tokens)
    assert sys.modules["own_parts.kernels"].CALLS == [(1, 5, 128)] * 3
    reference = mw.compile(spec, head="lm", fuse=False)
    torch.testing.assert_close(found, reference(tokens))
    assert kernels()["twice"].doc == "one multiplication"


def test_the_schema_knows_them(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mw.use_plugin(package(installed, op=OP, head=HEAD))
    schema_command.command()
    schema = json.loads(capsys.readouterr().out)
    assert "twice" in schema["$defs"]["Activation"]["enum"]
    assert "Hidden" in schema["$defs"]


def test_a_head_of_a_plugin(installed: Path) -> None:
    mw.use_plugin(package(installed, head=HEAD))
    spec = mw.load({"extends": "prenorm-test", "name": "x", "heads": {"own": "hidden"}})
    assert mw.compile(spec, head="own")(torch.arange(4)[None]).shape == (1, 4, 32)


def test_a_module_that_is_imported() -> None:
    module = ModuleType("own_module")
    exec(OP, module.__dict__)
    mw.use_plugin(module)
    assert "twice" in registry()


def test_a_model_knows_its_plugins(installed: Path, tmp_path: Path) -> None:
    mw.use_plugin(package(installed, op=OP))
    model = mw.compile("prenorm-test", head="lm", set={"block.ffn.activation": "twice"})
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(model))
    code = f"""
        import pickle, torch
        model = pickle.load(open({str(file)!r}, "rb"))
        with torch.no_grad():
            print(float(model(torch.arange(5)[None]).sum()))
    """
    path = f"import sys; sys.path.append({str(installed)!r})\n{textwrap.dedent(code)}"
    made = subprocess.run([sys.executable, "-c", path], capture_output=True, text=True, check=True)
    with torch.no_grad():
        here = float(model(torch.arange(5)[None]).sum())
    assert float(made.stdout) == pytest.approx(here, rel=1e-4)


def test_an_entry_point(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", package(installed, op=OP), plugins.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: (point,))
    monkeypatch.setattr(plugins, "_installed", None)
    assert "twice" in registry()
    gone = EntryPoint("mine", "own_that_went", plugins.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: (gone,))
    monkeypatch.setattr(plugins, "_installed", None)
    with pytest.raises(mw.MultiwayError) as found:
        mw.load("prenorm-test")
    assert str(found.value) == (
        "entry point multiway.plugins: mine of mine: error[bad-plugin]: there is no such module\n"
        "  expected: an installed module; files of the working directory are not looked at"
    )


def test_the_working_directory_is_not_looked_at(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(Path.cwd(), "own_here", op=OP)
    for first in ("", str(Path.cwd())):
        monkeypatch.setattr(sys, "path", [first, *sys.path])
        assert "there is no such module" in refused("own_here")
    assert "own_here" not in sys.modules
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(Path.cwd())])  # installed, as a link
    mw.use_plugin("own_here")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this module adds nothing\n  expected: a module with OP, HEAD, FUSION, PASS, KERNELS"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_"),
        ("OP = 3", "OP is a int\n  expected: OP = Op(...)"),
        ("PASS = 'x'", "PASS is a str\n  expected: PASS = Pass(...)"),
        (OP.replace("twice", "linear"), "the op 'linear' exists already"),
        (HEAD.replace('"hidden"', '"features"'), "the head kind 'features' exists already"),
        (OP.replace("x[*] ->", "x[*,D] ->"), "an elementwise op is x[*] -> y[*]"),
        (PASS.replace("count_nodes", "drop_dead"), "two passes are called 'drop_dead'"),
    ],
)
def test_what_does_not_fit_is_refused(installed: Path, text: str, words: str) -> None:
    assert words in refused(package(installed, part=text))


@pytest.mark.parametrize("name", ["", "a b", "../x", "x.py:", "3x", "a..b", "own-parts"])
def test_a_name_of_no_module(name: str) -> None:
    assert "this is no name of a module" in refused(name)


def test_two_plugins_with_one_op(installed: Path) -> None:
    mw.use_plugin(package(installed, "own_first", op=OP))
    assert "the op 'twice' exists already" in refused(package(installed, "own_second", op=OP))


def test_a_spec_names_none(installed: Path) -> None:
    package(installed, op=OP)
    with pytest.raises(mw.MultiwayError, match=r"activation cannot be 'own_parts\.op'"):
        mw.load("prenorm-test", set={"block.ffn.activation": "own_parts.op"})
    assert "own_parts" not in sys.modules


@pytest.mark.parametrize("line", ["{} check SPEC", "check SPEC {}", "check {} SPEC"])
@pytest.mark.parametrize("option", ["--plugin=own_parts", "--plugin own_parts"])
def test_the_command_line(installed: Path, line: str, option: str) -> None:
    package(installed, op=OP)
    Path("SPEC.yaml").write_text(
        "extends: prenorm-test\nname: x\nblock: {ffn: {activation: twice}}\n"
    )
    words = line.replace("SPEC", "SPEC.yaml").format(option).split()
    code = f"import sys; sys.path.append({str(installed)!r}); from multiway.cli import main; main()"
    made = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (made.returncode, made.stdout[:5]) == (0, "ok  x"), made.stderr
    without = [word for word in words if word not in option.split()]
    made = subprocess.run([sys.executable, "-c", code, *without], capture_output=True, text=True)
    assert made.returncode == 2
    assert "activation cannot be 'twice'" in made.stderr
