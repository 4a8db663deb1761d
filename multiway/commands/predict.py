"""multiway predict: every head on files, one example or many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiway import api
from multiway.commands.common import (
    HeadOption,
    ImageOption,
    SetOption,
    SpecArgument,
    TextOption,
    TokenizerOption,
    WeightsOption,
    note,
    progress,
    read_spec,
    say_if_random,
    write_text,
)
from multiway.specs import MultiwayError

if TYPE_CHECKING:
    from multiway.runtime.tasks.predict import Example, Predictor


def command(
    source: SpecArgument,
    head: HeadOption = None,
    weights: WeightsOption = None,
    image: ImageOption = None,
    text: TextOption = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--input", help='JSONL: {"image": FILE or [FILE, FILE], "text": TEXT} in every line.'
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    top: Annotated[int, typer.Option(min=1, help="Classes or words to list.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest caption.")] = 32,
    embed: Annotated[
        Path | None,
        typer.Option(help="Write embeddings to this .safetensors file instead (retrieval)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="JSONL file; default: standard output.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    settings: SetOption = None,
) -> None:
    """Run a head on image files and texts: one example or JSONL in, JSONL out."""
    from multiway.runtime.tasks.predict import Predictor

    spec = read_spec(source, settings).for_head(head)
    given = read_examples(examples) if examples else [("", one_example(image, text))]
    model = api.compile(spec, seed=seed, weights=weights)
    predictor = Predictor(model, tokenizer=tokenizer, top=top, tokens=tokens)
    say_if_random(model)
    if embed is not None:
        write_embeddings(predictor, given, embed)
        return
    rows = []
    for i, (place, example) in enumerate(progress(given, "predicted")):
        with placed(place):
            row = {"index": i, "random_weights": model.random, **predictor(example)}
        rows.append(json.dumps(row, ensure_ascii=False))
        if out is None:
            typer.echo(rows[-1])
    if out is not None:
        write_text(out, "\n".join(rows) + "\n")


def one_example(image: list[Path] | None, text: str | None) -> Example:
    from multiway.runtime.tasks.predict import Example

    return Example(images=tuple(image or ()), text=text)


class placed:
    """Puts the line of a JSONL file before the place of an error."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.place and isinstance(error, MultiwayError):
            first = error.problems[0]
            where = f"{self.place}: {first.place}" if first.place else self.place
            raise MultiwayError.one(
                first.code, first.message, place=where, expected=first.expected
            ) from None


def read_examples(path: Path) -> list[tuple[str, Example]]:
    """(place, example) of every line of a JSONL file; image paths start at its folder."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise MultiwayError.one(
            "unreadable", f"cannot be read: {reason}", place=str(path)
        ) from None
    found = [
        (f"{path}:{i}", _example(line, f"{path}:{i}", path.parent))
        for i, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise MultiwayError.one("empty", "there is no example in this file", place=str(path))
    return found


def _example(line: str, place: str, folder: Path) -> Example:
    from multiway.runtime.tasks.predict import Example

    expected = '{"image": "photo.jpg", "text": "what is this?"}'
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise MultiwayError.one("bad-json", "not JSON", place=place, expected=expected) from None
    if not isinstance(row, dict) or not row.keys() <= {"image", "text"}:
        raise MultiwayError.one("bad-json", "not an example", place=place, expected=expected)
    images = row.get("image", [])
    images = [images] if isinstance(images, str) else images
    text = row.get("text")
    right = isinstance(images, list) and all(isinstance(i, str) for i in images)
    if not right or not (text is None or isinstance(text, str)):
        raise MultiwayError.one("bad-json", "not an example", place=place, expected=expected)
    return Example(images=tuple(folder / name for name in images), text=text)


def write_embeddings(predictor: Predictor, given: list[tuple[str, Example]], path: Path) -> None:
    """One tensor [examples, width] a tower; every example must have the same towers."""
    import torch

    from multiway.runtime.checkpoints.weights import write_tensors

    columns: dict[str, list[torch.Tensor]] = {}
    for i, (place, example) in enumerate(progress(given, "embedded")):
        with placed(place):
            found = predictor.embed(example)
            if i and found.keys() != columns.keys():
                raise MultiwayError.one(
                    "missing-input", "has other inputs than the examples before it", place="input"
                )
        for name, vector in found.items():
            columns.setdefault(name, []).append(vector)
    write_tensors(path, {name: torch.stack(rows) for name, rows in columns.items()})
    shapes = ", ".join(f"{name} [{len(rows)}, {len(rows[0])}]" for name, rows in columns.items())
    note(f"wrote {path}: {shapes}")
