"""multiway compile: a model as readable files."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiway import api
from multiway.commands.common import HeadOption, SetOption, SpecArgument, note, read_spec
from multiway.compiler.build import build, program_names
from multiway.compiler.graph import LayerGraph
from multiway.compiler.printing import to_text
from multiway.specs import MultiwayError, Spec

if TYPE_CHECKING:
    from multiway.runtime.model import Model

MAX_RUN_BYTES = 2**31  # --verify runs models up to this size on real numbers, larger ones on meta


def command(
    source: SpecArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    head: HeadOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check graphs, lowered code and listing, and run them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    settings: SetOption = None,
) -> None:
    """Write model.py, the resolved spec, the graphs and a report."""
    spec = read_spec(source, settings).for_head(head)
    _check_target(out, force)
    model = api.compile(spec, device="meta")
    graphs = {name: build(spec, program=name) for name in program_names(spec)}
    files = _files(spec, model, graphs)
    if verify:
        files["report.txt"] += "\n" + verify_all(spec, graphs, files["model.py"])
    _write_folder(out, files)
    note(f"wrote {out}: {', '.join(files)}")


def _check_target(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise MultiwayError.one("unwritable", "this is a file, not a folder", place=str(out))
    if out.is_dir() and any(out.iterdir()) and not force:
        raise MultiwayError.one(
            "unwritable",
            "this folder is not empty",
            place=str(out),
            expected="an empty or new folder, or --force",
        )


def _files(spec: Spec, model: Model, graphs: dict[str, LayerGraph]) -> dict[str, str]:
    from multiway import __version__
    from multiway.compiler.listing import listing

    files = {
        "model.py": listing(
            model.programs, name=spec.name, head=spec.head_name, version=__version__
        ),
        "spec.yaml": spec.text(),
        "report.txt": report(spec, graphs),
    }
    for name, graph in graphs.items():
        files[f"graph.{name}.txt"] = to_text(graph) + "\n"
        files[f"graph.{name}.json"] = json.dumps(graph.to_json()) + "\n"
    return files


def report(spec: Spec, graphs: dict[str, LayerGraph]) -> str:
    """What was made, in a few lines."""
    lines = [f"{spec.name}, head {spec.head_name}"]
    for name, graph in graphs.items():
        products = sum(record.op == "linear" for record in graph)
        lines.append(f"program {name}: {len(graph)} nodes, {products} matrix products")
    total = sum(param.size for param in next(iter(graphs.values())).params.values())
    return "\n".join([*lines, f"parameters: {total:,}", ""])


def verify_all(spec: Spec, graphs: dict[str, LayerGraph], text: str) -> str:
    """Checks every program and says how. Raises VerificationError where multiway is at fault."""
    from multiway.compiler.correspond import corresponds
    from multiway.compiler.verify import VerificationError, verify
    from multiway.runtime.samples import equal, random_inputs

    size = 4 * sum(p.size for p in next(iter(graphs.values())).params.values())
    device = "cpu" if size <= MAX_RUN_BYTES else "meta"
    model = api.compile(spec, device=device)
    assemble = _load_listing(text)
    lines = []
    for name, graph in graphs.items():
        verify(graph)
        if not corresponds(graph, model.programs[name]):
            raise VerificationError(f"program {name} differs from its graph")
        inputs = random_inputs(model, name)
        ours, listed = model.run(name, **inputs), assemble(name, model)(*inputs.values())
        if not equal(ours, listed):
            raise VerificationError(f"model.py computes something else in program {name}")
        how = "outputs equal" if device == "cpu" else "shapes equal (too large to run here)"
        lines.append(f"verified {name}: graph, lowered code, model.py; {how}")
    return "\n".join([*lines, ""])


def _load_listing(text: str):  # type: ignore[no-untyped-def]
    """The `assemble` function of a listing, imported from a file as a user would."""
    import importlib.util

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.py"
        path.write_text(text, encoding="utf-8")
        found = importlib.util.spec_from_file_location("multiway_listing", path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return module.assemble


def _write_folder(out: Path, files: dict[str, str]) -> None:
    """Writes all files into a folder beside, then moves it into place."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiwayError.one("unwritable", f"cannot write: {reason}", place=str(out)) from None
    try:
        for name, text in files.items():
            (made / name).write_text(text, encoding="utf-8")
        made.chmod(0o755)
        if out.is_dir():
            shutil.rmtree(out)
        made.rename(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiwayError.one("unwritable", f"cannot write: {reason}", place=str(out)) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
