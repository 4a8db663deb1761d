"""What several commands share: reading a SPEC argument, printing numbers, writing files."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from multiway import api
from multiway.specs import MultiwayError, Spec
from multiway.specs.text.source import MAX_BYTES, parse

if TYPE_CHECKING:
    from multiway.runtime.model import Model

T = TypeVar("T")

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A zoo name, a path, or - for standard input.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a dim, or a value by its path."),
]


class Mode(StrEnum):
    """What programs are compiled for."""

    train = "train"
    inference = "inference"


ModeOption = Annotated[
    Mode,
    typer.Option(help="inference: no gradients; copies of weights with norms in, and laid out."),
]
HeadOption = Annotated[
    str | None, typer.Option("--head", metavar="HEAD", help="Which head; not needed for one.")
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option("--image", help="An image file; twice for a head that compares two."),
]
TextOption = Annotated[str | None, typer.Option("--text", help="A text.")]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(help="A tokenizers .json, or a sentencepiece .spm or .model; default: bytes."),
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Weights that `multiway import` wrote; default: random ones.")
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="PASS", help="Leave a pass of the pipeline out."),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NUMERICS", help="Also run passes that are only `approx`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def read_spec(source: str, settings: list[str] | None) -> Spec:
    """The spec that a command line names. Raises MultiwayError."""
    values = parse_settings(settings)
    if source != "-":
        return api.load(source, set=values)
    # One byte more than allowed is enough to know that it is too much.
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MultiwayError.one("not-utf8", "not UTF-8 text", place="<stdin>") from None
    return api.load(parse(text, file="<stdin>"), set=values)


def parse_settings(settings: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping. Raises MultiwayError."""
    values = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise MultiwayError.one(
                "unknown-set", f"{setting!r} sets nothing", place="--set", expected="NAME=VALUE"
            )
        values[name.strip()] = value.strip()
    return values


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def short_number(value: float, *, giga: str = "G") -> str:
    """1234567 as 1.23M. giga: what stands for 10^9, B where parameters are counted."""
    for unit in ("", "k", "M", giga, "T", "P"):
        if abs(value) < 1000 or unit == "P":
            return f"{value:.3g}{unit}" if unit else f"{value:.0f}"
        value /= 1000
    raise AssertionError


def short_bytes(value: float) -> str:
    """1536 as 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all. Raises MultiwayError."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiwayError.one("unwritable", f"cannot write: {reason}", place=str(path)) from None


def say_if_random(model: Model) -> None:
    """A warning that what comes out means nothing."""
    if model.random:
        note("the weights are random: this shows that the model runs, not what it knows")


def progress(items: Sequence[T], done: str) -> Iterator[T]:
    """Goes through items, showing how far: a bar on a terminal, now and then a line elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(items, description=done, console=console, transient=True)
        return
    every = max(1, len(items) // 10)
    for i, item in enumerate(items, 1):
        yield item
        if len(items) > 1 and (i % every == 0 or i == len(items)):
            note(f"{done} {i} of {len(items)}")


def note(text: str) -> None:
    """A line for the person at the terminal; standard output stays free for results."""
    typer.echo(text, err=True)
