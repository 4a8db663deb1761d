"""multiway import: a released checkpoint as safetensors under spec paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiway import api
from multiway.commands.common import HeadOption, SetOption, SpecArgument, note, read_spec
from multiway.specs import MultiwayError


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .bin, .pt or .safetensors file.")],
    source: SpecArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="The .safetensors file to write.")],
    head: HeadOption = None,
    fresh: Annotated[
        str | None,
        typer.Option(
            metavar="HEAD", help="Give this head initial values, whatever head the file has."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial values of a fresh head.")] = 0,
    family: Annotated[
        str | None,
        typer.Option(help="Whose names the file has; default: the family of SPEC."),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Read a released checkpoint and write it under spec paths."""
    from multiway.compiler.compile import compile_spec

    if fresh is not None and head not in (None, fresh):
        raise MultiwayError.one(
            "usage", f"--head {head} and --fresh {fresh} name two heads", place="import"
        )
    spec = read_spec(source, settings).for_head(fresh or head)
    api.rename_table(spec, family)  # an unknown family is said before anything is allocated
    model = compile_spec(spec, fill=fresh is not None, seed=seed)
    loaded = api.import_weights(model, checkpoint, family=family, fresh_head=fresh is not None)
    api.save(model, out)
    for name in loaded.resized:
        note(f"resized {name} to {model.get_parameter(name).shape[0]} rows")
    for name in loaded.fresh:
        note(f"initial values for {name}")
    total = sum(parameter.numel() for parameter in model.parameters())
    note(f"wrote {out}: {total:,} parameters of {spec.name}, head {spec.head_name}")
