"""multiway new: files for a wiring, an op, a fusion, a head or a family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiway import scaffold


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(scaffold.KINDS) + ".")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and _.")],
) -> None:
    """Write an example that works, to be changed: in a checkout with its documents and tests."""
    scaffold.check_kind(kind)
    made = scaffold.plan(kind, name, Path())
    scaffold.write(made)
    for path in made.files:
        typer.echo(f"wrote    {path}")
    for path in made.changed:
        typer.echo(f"changed  {path}")
    typer.echo("\nthen:")
    for line in made.then:
        typer.echo(f"  {line}")
