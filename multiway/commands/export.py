"""multiway export: weights under the names of a released format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiway import api
from multiway.commands.common import HeadOption, SetOption, SpecArgument, note, read_spec


def command(
    weights: Annotated[Path, typer.Argument(help="A file that multiway wrote.")],
    source: SpecArgument,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help=".safetensors, or .pth, .pt or .bin for a torch file."),
    ],
    head: HeadOption = None,
    family: Annotated[
        str | None, typer.Option(help="Whose names to use; default: the family of SPEC.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Write weights under the names of a released format; `import` is the inverse."""
    spec = read_spec(source, settings).for_head(head)
    api.rename_table(spec, family)  # an unknown family is said before anything is read
    model = api.compile(spec, weights=weights)
    api.export_weights(model, out, family=family)
    note(f"wrote {out}: {spec.name}, head {spec.head_name}")
