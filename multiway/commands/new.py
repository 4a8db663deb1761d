"""multiway new: files for a wiring, an op, a fusion, a head or a family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiway import scaffold
from multiway.commands.common import write_text
from multiway.specs import MultiwayError


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(scaffold.KINDS) + ".")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and _.")],
) -> None:
    """Write an example that works, to be changed: in a checkout with its documents and tests."""
    scaffold.check_kind(kind)
    made = scaffold.plan(kind, name, Path())
    write(made)
    for path in made.files:
        typer.echo(f"wrote    {path}")
    for path in made.changed:
        typer.echo(f"changed  {path}")
    typer.echo("\nthen:")
    for line in made.then:
        typer.echo(f"  {line}")


def write(made: scaffold.Plan) -> None:
    """Writes all files of a plan, or none. Raises MultiwayError."""
    before = {path: path.read_text(encoding="utf-8") for path in made.changed}
    written: list[Path] = []
    folders: list[Path] = []
    try:
        for path, text in {**made.files, **made.changed}.items():
            folders += _made_folders(path.parent)
            write_text(path, text)
            written.append(path)
    except MultiwayError:
        for path in written:
            write_text(path, before[path]) if path in before else path.unlink()
        for folder in reversed(folders):
            folder.rmdir()
        raise


def _made_folders(folder: Path) -> list[Path]:
    """Makes a folder with those that it stands in; gives those that were not there."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make this folder: {error.strerror or error}"
        raise MultiwayError.one("unwritable", message, place=str(folder)) from None
    return missing[::-1]
