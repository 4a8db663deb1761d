"""Which file may import what, read from the files themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("specs", "runtime", "compiler", "zoo", "multiway")  # each may import those before it
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def folder(layer: str) -> Path:
    return ROOT / layer


def files() -> Iterator[tuple[str, Path]]:
    """(layer, file) of everything that is installed. multiway/ holds links to the other folders."""
    for layer in LAYERS[:-1]:
        for path in sorted(folder(layer).rglob("*.py")):
            yield layer, path
    inside = [p for p in sorted(folder("multiway").iterdir()) if not p.is_symlink()]
    for path in inside:
        found = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
        for each in found:
            yield "multiway", each


FILES = [pytest.param(layer, path, id=str(path.relative_to(ROOT))) for layer, path in files()]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in a file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def layer_of(module: str) -> str | None:
    """The layer of a module of ours, None for those of others."""
    first, _, rest = module.partition(".")
    if first != "multiway":
        return None
    second = rest.partition(".")[0]
    return second if second in LAYERS[:-1] else "multiway"


def uses(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """Calls of `name`, which may be dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


def test_there_is_something_to_read() -> None:
    layers = [layer for layer, _ in files()]
    assert all(layers.count(layer) >= 2 for layer in LAYERS)
    assert folder("compiler") / "ops" / "linear.py" in [path for _, path in files()]


@pytest.mark.parametrize(("layer", "path"), FILES)
def test_no_import_goes_up(layer: str, path: Path) -> None:
    for module, line in imported(path):
        found = layer_of(module)
        if found is not None:
            upward = LAYERS.index(found) > LAYERS.index(layer)
            assert not upward, f"{path}:{line} of {layer} imports {module} of {found}"
        assert module.split(".")[0] not in LAYERS[:-1], f"{path}:{line}: import multiway.{module}"


@pytest.mark.parametrize(("layer", "path"), FILES)
def test_only_the_layer_graph_touches_networkx(layer: str, path: Path) -> None:
    names = {module.split(".")[0] for module, _ in imported(path)}
    assert "networkx" not in names or path == folder("compiler") / "graph.py"


@pytest.mark.parametrize(("layer", "path"), FILES)
def test_the_specs_know_nothing_of_torch(layer: str, path: Path) -> None:
    names = {module.split(".")[0] for module, _ in imported(path)}
    assert layer != "specs" or not names & {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize(("layer", "path"), FILES)
def test_nothing_runs_text_or_pickles(layer: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    for name in FORBIDDEN_CALLS:
        assert not list(uses(tree, name)), f"{path} calls {name}"
    for name in (
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "yaml.load",
        "yaml.unsafe_load",
    ):
        assert not list(uses(tree, name)), f"{path} calls {name}"
    for call in uses(tree, "torch.load"):
        safe = {k.arg: ast.unparse(k.value) for k in call.keywords}.get("weights_only")
        assert safe == "True", f"{path}:{call.lineno} loads more than tensors"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loading_and_building_import_no_torch() -> None:
    run(
        "import sys\n"
        "import multiway as mw\n"
        "from multiway.compiler.assemble.build import head_of, parameters, program_names\n"
        "from multiway.compiler.analysis.costs import costs, default_sizes\n"
        "from multiway.compiler.views.picture import to_svg\n"
        "from multiway.compiler.views.text import to_text\n"
        "from multiway.compiler.graph.verify import verify\n"
        "from multiway.zoo import catalogue\n"
        "for name in catalogue().names:\n"
        "    if name.endswith('-test'):\n"
        "        for head in mw.load(name).heads:\n"
        "            spec = mw.load(name).for_head(head)\n"
        "            for program in program_names(spec):\n"
        "                graph = mw.build(spec, program=program)\n"
        "                verify(graph), to_text(graph), to_svg(graph), graph.to_json()\n"
        "                costs(graph, default_sizes(graph, {}, batch=1, length=4))\n"
        "            parameters(spec), head_of(spec).answer(spec)\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_every_module_can_be_imported_first() -> None:
    # A circle of imports works or fails by what comes first.
    for module in ("specs.spec", "compiler.graph", "compiler.heads", "runtime.rename", "zoo"):
        run(f"import multiway.{module}")
