"""multiway show: what a model costs."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from multiway.cards import limits
from multiway.commands.common import (
    HeadOption,
    JsonOption,
    SetOption,
    SpecArgument,
    print_json,
    read_spec,
    short_bytes,
    short_number,
)
from multiway.compiler.analysis.costs import Cost, costs, default_sizes, total
from multiway.compiler.assemble.build import build
from multiway.specs import Spec


def command(
    source: SpecArgument,
    head: HeadOption = None,
    program: Annotated[
        str | None, typer.Option(help="Which program; default: the head's main one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 1,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a text; default: the longest.")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, active parameters, FLOPs, activation and weight bytes, by part."""
    spec = read_spec(source, settings).for_head(head)
    graph = build(spec, program=program)
    sizes = default_sizes(graph, limits(spec), batch=batch, length=length)
    parts = costs(graph, sizes)
    if as_json:
        rows = {part: _row(cost) for part, cost in parts.items()}
        rows["total"] = _row(total(parts))
        print_json(
            {"name": spec.name, "head": spec.head_name, "program": graph.name, "sizes": sizes}
            | {"parts": rows}
        )
        return
    typer.echo(table(spec, graph.name, sizes, parts))


def _row(cost: Cost) -> dict[str, float]:
    return {**dataclasses.asdict(cost), "weight_bytes": cost.weight_bytes}


def table(spec: Spec, program: str, sizes: dict[str, int], parts: dict[str, Cost]) -> str:
    """The costs as aligned text."""
    given = ", ".join(f"{name} = {value}" for name, value in sorted(sizes.items()))
    lines = [f"{spec.name}, head {spec.head_name}, program {program}, {given}", ""]
    header = ("part", "parameters", "active", "FLOPs", "activations", "weights")
    rows = [header]
    for name, cost in [*parts.items(), ("total", total(parts))]:
        rows.append(
            (
                name,
                f"{cost.parameters:,}",
                f"{cost.active:,}",
                short_number(cost.flops),
                short_bytes(cost.activation_bytes),
                short_bytes(cost.weight_bytes),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines += [
        "",
        "FLOPs count a multiplication and an addition as two; bytes are those of float32.",
    ]
    return "\n".join(lines)
