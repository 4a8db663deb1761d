"""multiway graph: the layer graph of a program."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from multiway.commands.common import HeadOption, SetOption, SpecArgument, read_spec, write_text
from multiway.compiler.assemble.build import build
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.pipeline import PIPELINE, Options, run
from multiway.specs import MultiwayError, Spec
from multiway.specs.errors import nearest, one_of


class Format(StrEnum):
    """How a graph is written."""

    text = "text"
    json = "json"
    svg = "svg"
    html = "html"


def command(
    source: SpecArgument,
    head: HeadOption = None,
    program: Annotated[
        str | None, typer.Option(help="Which program; default: the head's main one.")
    ] = None,
    stage: Annotated[
        str, typer.Option(help="built, fused, or the name of a pass: the graph after it.")
    ] = "built",
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.text,
    unfold: Annotated[bool, typer.Option(help="Show every block (JSON always does).")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A file instead of standard output.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """The layer graph as text, JSON (networkx node-link data), SVG or HTML."""
    spec = read_spec(source, settings).for_head(head)
    graph = at_stage(spec, program, stage)
    if form is Format.json:
        text = json.dumps(graph.to_json(), indent=1)
    elif form is Format.text:
        from multiway.compiler.views.text import to_text

        text = to_text(graph, fold=not unfold)
    else:
        from multiway.compiler.views.picture import to_html, to_svg

        title = f"{spec.name}, head {spec.head_name}, program {graph.name}"
        fold = not unfold
        text = to_svg(graph, fold=fold) if form is Format.svg else to_html(graph, title, fold=fold)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text)


def at_stage(spec: Spec, program: str | None, stage: str) -> LayerGraph:
    """The graph of a program after a pass. Raises MultiwayError for a stage that there is not."""
    names = ["built", *(each.name for each in PIPELINE), "fused"]
    if stage not in names:
        raise MultiwayError.one(
            "unknown-stage",
            f"there is no stage {stage!r}",
            place="--stage",
            expected=one_of(names),
            nearest=nearest(stage, names),
        )
    graph = build(spec, program=program)
    if stage == "built":
        return graph
    only = next((each.only for each in PIPELINE if each.name == stage), None)
    stages = run(graph, Options(mode=only or "train"))
    return next((s.graph for s in stages if s.name == stage), stages[-1].graph)
