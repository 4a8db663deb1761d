"""What no contract of imports can say (those stand in pyproject.toml): read from the files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("specs", "runtime", "compiler", "zoo", "multiway")
RUN_TEXT = {"eval", "exec", "compile", "__import__"}
UNPICKLE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load"}


def files() -> list[Path]:
    """Everything that is installed. multiway/ holds links to the other folders."""
    found = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    return [path for path in found if not any(p.is_symlink() for p in path.parents)]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, name, call) of every call in these files; the name may be dotted."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_nothing_runs_text_or_pickles() -> None:
    found = list(calls())
    places = {place.split(":")[0] for place, _, _ in found}
    assert {"compiler/graph/registry.py", "multiway/api.py", "zoo/catalogue.py"} <= places
    assert not [(place, name) for place, name, _ in found if name in RUN_TEXT | UNPICKLE]


def test_a_file_of_weights_is_loaded_as_tensors_alone() -> None:
    loads = [(place, call) for place, name, call in calls() if name == "torch.load"]
    assert loads
    for place, call in loads:
        safe = {k.arg: ast.unparse(k.value) for k in call.keywords}.get("weights_only")
        assert safe == "True", f"{place} loads more than tensors"


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


def test_what_a_registry_lists_can_be_imported_first() -> None:
    # The contracts do not see these imports: a circle works or fails by what comes first.
    run(
        "import importlib, sys\n"
        "for name in ('compiler.graph.registry', 'compiler.ops.mix', 'compiler.heads.causal_lm',\n"
        "             'compiler.fusions.fused_mix', 'compiler.matching.match', 'zoo.catalogue'):\n"
        "    for module in [m for m in sys.modules if m.startswith('multiway')]:\n"
        "        del sys.modules[module]\n"
        "    importlib.import_module(f'multiway.{name}')\n"
    )
