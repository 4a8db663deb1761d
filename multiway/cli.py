"""The command `multiway`. Every command is one file in multiway/commands.

Exit codes: 0 done, 1 a check or comparison failed, 2 what the user gave is wrong.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import Annotated, TextIO

import typer

from multiway import api
from multiway.commands import (
    bench,
    check,
    compile,
    export,
    generate,
    graph,
    import_,
    new,
    predict,
    run,
    schema,
    show,
    zoo,
)
from multiway.specs import MultiwayError, MultiwayWarning

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
    "new": new,
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


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as errors look, which have a place of their own; others as Python does."""
    if issubclass(category, MultiwayWarning):
        typer.echo(str(message), err=True)
    else:
        _python_shows(message, category, filename, lineno, file, line)


_python_shows = warnings.showwarning


def _plugins(names: list[str] | None) -> None:
    for name in names or ():
        api.use_plugin(name)


def plugins_first(arguments: list[str]) -> list[str]:
    """Command line arguments with each `--plugin MODULE` moved before the command: whatever the
    command does, it does with them."""
    own = arguments.index("--") if "--" in arguments else len(arguments)
    found: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:own])
    for word in words:
        if word == "--plugin":
            found += [word, *itertools.islice(words, 1)]
        elif word.startswith("--plugin="):
            found.append(word)
        else:
            rest.append(word)
    return [*found, *rest, *arguments[own:]]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE",
            callback=_plugins,
            help="Add the ops, heads and fusions of an installed module; anywhere on the line.",
        ),
    ] = None,
) -> None:
    """Compiles declarative architecture specs to readable torch.fx modules."""
    warnings.simplefilter("always", MultiwayWarning)
    warnings.showwarning = _show_warning


def main() -> None:
    """Entry point: errors of the user go to standard error without a traceback."""
    try:
        app(plugins_first(sys.argv[1:]))
    except MultiwayError as error:
        typer.echo(error.render(), err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `multiway graph ... | head`.
        sys.stderr.close()


if __name__ == "__main__":
    main()
