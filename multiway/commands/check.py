"""multiway check: validate specs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from multiway.cards import count_parameters
from multiway.commands.common import JsonOption, SetOption, print_json, read_spec
from multiway.compiler.assemble.build import build, program_names
from multiway.specs import MultiwayError, Problem


def command(
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC...", help="Zoo names, paths, or - for standard input."),
    ],
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate specs: exit 0, or 2 with every error at its place."""
    results = [check(source, settings) for source in specs]
    if as_json:
        print_json(results)
    else:
        for result in results:
            typer.echo(result.pop("text"), err=not result["ok"])
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


def check(source: str, settings: list[str] | None) -> dict[str, Any]:
    """What a check found: builds the main program of every head, so that shapes are checked."""
    try:
        spec = read_spec(source, settings)
        heads = {}
        for head in spec.heads:
            chosen = spec.for_head(head)
            build(chosen)
            heads[head] = {
                "parameters": count_parameters(spec, head),
                "programs": list(program_names(chosen)),
            }
    except MultiwayError as error:
        problems = [as_dict(problem) for problem in error.problems]
        return {"spec": source, "ok": False, "errors": problems, "text": error.render()}
    lines = [f"ok  {spec.name}: {spec.depth} blocks of width {spec.width}"]
    lines += [f"    {name}: {found['parameters']:,} parameters" for name, found in heads.items()]
    return {
        "spec": source,
        "ok": True,
        "name": spec.name,
        "heads": heads,
        "warnings": [as_dict(problem) for problem in spec.warnings],
        "text": "\n".join(lines),
    }


def as_dict(problem: Problem) -> dict[str, Any]:
    """An error or a warning as plain data."""
    span = problem.span
    return {
        "code": problem.code,
        "message": problem.message,
        "file": span.file if span else problem.place,
        "line": span.line if span else None,
        "column": span.column if span else None,
        "expected": problem.expected or None,
        "nearest": problem.nearest or None,
    }
