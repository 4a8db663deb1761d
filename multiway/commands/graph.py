"""multiway graph: the layer graph of a program."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from multiway.commands.common import HeadOption, SetOption, SpecArgument, read_spec, write_text
from multiway.compiler.build import build


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
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.text,
    unfold: Annotated[bool, typer.Option(help="Write out repeated blocks (text).")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A file instead of standard output.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """The layer graph as text, JSON (networkx node-link data), SVG or HTML."""
    spec = read_spec(source, settings).for_head(head)
    graph = build(spec, program=program)
    if form is Format.json:
        text = json.dumps(graph.to_json(), indent=1)
    elif form is Format.text:
        from multiway.compiler.printing import to_text

        text = to_text(graph, fold=not unfold)
    else:
        from multiway.compiler.drawing import to_html, to_svg

        title = f"{spec.name}, head {spec.head_name}, program {graph.name}"
        text = to_svg(graph) if form is Format.svg else to_html(graph, title)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text)
