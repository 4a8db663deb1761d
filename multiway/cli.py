"""The command `multiway`. Every command is one file in multiway/commands.

Exit codes: 0 done, 1 a check or comparison failed, 2 what the user gave is wrong.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from multiway.commands import (
    bench,
    check,
    compile,
    export,
    generate,
    graph,
    import_,
    predict,
    run,
    schema,
    show,
    zoo,
)
from multiway.specs import MultiwayError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = {
    "check": check,
    "show": show,
    "graph": graph,
    "compile": compile,
    "run": run,
    "predict": predict,
    "generate": generate,
    "bench": bench,
    "zoo": zoo,
    "schema": schema,
    "import": import_,
    "export": export,
}
for _name, _module in COMMANDS.items():
    app.command(_name)(_module.command)


def _version(asked: bool) -> None:
    if asked:
        from multiway import __version__

        typer.echo(f"multiway {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compiles declarative architecture specs to readable torch.fx modules."""


def main() -> None:
    """Entry point: errors of the user go to standard error without a traceback."""
    try:
        app()
    except MultiwayError as error:
        typer.echo(error.render(), err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `multiway graph ... | head`.
        sys.stderr.close()


if __name__ == "__main__":
    main()
