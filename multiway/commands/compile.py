"""multiway compile: a model as readable files, and what the compiler did."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiway.cards import limits
from multiway.commands.common import (
    AllowOption,
    HeadOption,
    JsonOption,
    Mode,
    ModeOption,
    SetOption,
    SpecArgument,
    WithoutOption,
    note,
    print_json,
    read_spec,
)
from multiway.compiler.analysis.costs import default_sizes
from multiway.compiler.assemble.build import build, parameters, program_names
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.pipeline import Options, Stage, Stages
from multiway.compiler.views.report import report
from multiway.compiler.views.report import to_text as to_report_text
from multiway.compiler.views.text import to_text
from multiway.specs import MultiwayError, Spec

if TYPE_CHECKING:
    from multiway.runtime.model import Model

MAX_RUN_BYTES = 2**31  # --verify runs models up to this size on real numbers, larger ones on meta


def command(
    source: SpecArgument,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The folder to write.")] = None,
    head: HeadOption = None,
    show_report: Annotated[
        bool, typer.Option("--report", help="Print what every pass did and what kernels take.")
    ] = False,
    dump: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the graphs after every pass.")
    ] = None,
    mode: ModeOption = Mode.train,
    without: WithoutOption = None,
    allow: AllowOption = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="What a training step may keep for backward, such as 1.5GiB; see --batch.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows that bytes are counted for.")] = 1,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens that bytes are counted for; default: all.")
    ] = None,
    no_fuse: Annotated[
        bool, typer.Option("--no-fuse", help="The reference: no pass, no kernel.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check graphs, lowered code and listing, and run them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write model.py, the resolved spec, the graphs and a report; or print the report."""
    spec = read_spec(source, settings).for_head(head)
    if out is None and dump is None and not show_report and not as_json:
        raise MultiwayError.one(
            "nothing-to-do", "nothing to write and nothing to print", place="compile",
            expected="-o DIR, --dump DIR or --report",
        )  # fmt: skip
    for folder in (out, dump):
        if folder is not None:
            _check_target(folder, force)
    sizes = default_sizes(build(spec), limits(spec), batch=batch, length=length)
    options = Options(
        mode=mode.value,
        without=tuple(without or ()),
        allow=tuple(allow or ()),
        memory_budget=parse_bytes(memory_budget),
        sizes=sizes,
    )
    stages = Stages(spec, None if no_fuse else options)
    found = {name: stages[name] for name in program_names(spec)}
    reports = {name: report(each, limits=limits(spec), sizes=sizes) for name, each in found.items()}
    if dump is not None:
        write_folder(dump, dumped(found))
        note(f"wrote {dump}: every program after every pass")
    if out is not None:
        _write(out, spec, found, reports, None if no_fuse else options, verify)
    if as_json:
        print_json({"name": spec.name, "head": spec.head_name, "programs": reports})
    elif show_report:
        typer.echo(report_text(spec, reports))


def parse_bytes(text: str | None) -> int | None:
    """`1.5GiB`, `300MB`, `1000000` as bytes. Raises MultiwayError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kKMGT])(i?)B?|B)?", text.strip())
    if found is None:
        raise MultiwayError.one(
            "bad-size", f"{text!r} is no number of bytes", place="--memory-budget",
            expected="a number with or without a unit: 1.5GiB, 300MB, 1000000",
        )  # fmt: skip
    number, unit, binary = found.groups()
    power = "kMGT".index(unit.replace("K", "k")) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def dumped(found: Mapping[str, Sequence[Stage]]) -> dict[str, str]:
    """Files with the graph after every pass that changed it, numbered in order."""
    files = {}
    for name, stages in found.items():
        for i, stage in enumerate(stages):
            if i == 0 or stage.graph is not stages[i - 1].graph:
                files[f"{name}.{i:02}.{stage.name}.txt"] = to_text(stage.graph) + "\n"
    return files


def _write(
    out: Path,
    spec: Spec,
    found: Mapping[str, Sequence[Stage]],
    reports: Mapping[str, Mapping[str, Any]],
    options: Options | None,
    verify: bool,
) -> None:
    """Writes the folder of a compiled model."""
    from multiway.compiler.compile import compile_spec

    compiled = functools.partial(compile_spec, spec, options=options)
    graphs = {name: stages[-1].graph for name, stages in found.items()}
    files = _files(spec, compiled(device="meta"), graphs)
    files["report.txt"] = report_text(spec, reports)
    files["report.json"] = json.dumps({"programs": reports}) + "\n"
    if verify:
        files["report.txt"] += "\n" + verify_all(compiled, graphs, files["model.py"])
    write_folder(out, files)
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
    from multiway.compiler.views.python import listing

    files = {
        "model.py": listing(
            model.programs, name=spec.name, head=spec.head_name, version=__version__
        ),
        "spec.yaml": spec.text(),
    }
    for name, graph in graphs.items():
        files[f"graph.{name}.txt"] = to_text(graph) + "\n"
        files[f"graph.{name}.json"] = json.dumps(graph.to_json()) + "\n"
    return files


def report_text(spec: Spec, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The reports of all programs."""
    total = sum(param.size for param in parameters(spec).values())
    lines = [f"{spec.name}, head {spec.head_name}, parameters: {total:,}"]
    return "\n\n".join([*lines, *map(to_report_text, reports.values())]) + "\n"


def verify_all(compiled: Callable[..., Model], graphs: Mapping[str, LayerGraph], text: str) -> str:
    """Checks every program and says how. Raises VerificationError where multiway is at fault."""
    from multiway.compiler.graph.verify import VerificationError, verify
    from multiway.compiler.lowering.check import corresponds
    from multiway.runtime.tasks.random_inputs import equal, random_inputs

    size = 4 * sum(p.size for p in next(iter(graphs.values())).params.values())
    device = "cpu" if size <= MAX_RUN_BYTES else "meta"
    model = compiled(device=device)
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


def write_folder(out: Path, files: dict[str, str]) -> None:
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
