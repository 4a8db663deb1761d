"""multiway run: a first look at what a model puts out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from multiway import api
from multiway.commands.common import (
    HeadOption,
    ImageOption,
    JsonOption,
    SetOption,
    SpecArgument,
    TextOption,
    WeightsOption,
    print_json,
    read_spec,
    say_if_random,
)


def command(
    source: SpecArgument,
    head: HeadOption = None,
    image: ImageOption = None,
    text: TextOption = None,
    weights: WeightsOption = None,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Most tokens to write.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a head on an image and a text (read as bytes), and show what comes out."""
    from multiway.runtime.tasks.predict import Example, Predictor

    spec = read_spec(source, settings).for_head(head)
    model = api.compile(spec, seed=seed, weights=weights)
    predictor = Predictor(model, tokens=tokens)
    result = predictor(Example(images=tuple(image or ()), text=text))
    result = {"name": spec.name, "head": spec.head_name, "random_weights": model.random} | result
    if as_json:
        print_json(result)
        return
    say_if_random(model)
    for name, value in result.items():
        if name != "random_weights":
            typer.echo(f"{name}: {shown(value)}")


def shown(value: Any) -> str:
    """A result for reading: a list of mappings is one line each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rows = [", ".join(f"{k} {v}" for k, v in row.items()) for row in value]
        return "\n  " + "\n  ".join(rows)
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)
