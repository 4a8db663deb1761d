"""multiway run: a first look at what a model puts out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiway import api
from multiway.commands.common import (
    HeadOption,
    JsonOption,
    SetOption,
    SpecArgument,
    note,
    print_json,
    read_spec,
)
from multiway.specs import MultiwayError, Spec

if TYPE_CHECKING:
    import torch

    from multiway.runtime.model import Model

TOP = 5  # classes or tokens that are listed
RANDOM = "the weights are random: this shows that the model runs, not what it knows"


def command(
    source: SpecArgument,
    head: HeadOption = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", help="An image file; twice for a head that compares two."),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="A text, read as bytes.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights that `multiway import` wrote; default: random.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Tokens to generate.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a head on an image and a text, and show what comes out."""
    spec = read_spec(source, settings).for_head(head)
    inputs = read_inputs(spec, image or [], text)
    model = api.compile(spec, seed=seed, weights=weights)
    result = look(model, inputs, tokens)
    result = {"name": spec.name, "head": spec.head_name, "random_weights": model.random} | result
    if as_json:
        print_json(result)
        return
    if model.random:
        note(RANDOM)
    for name, value in result.items():
        if name != "random_weights":
            typer.echo(f"{name}: {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rows = [", ".join(f"{k} {v}" for k, v in row.items()) for row in value]
        return "\n  " + "\n  ".join(rows)
    return str(value)


def read_inputs(spec: Spec, images: list[Path], text: str | None) -> dict[str, torch.Tensor]:
    """The head's inputs from what was given. Raises MultiwayError where something is missing."""
    from multiway.runtime.media import read_image, text_ids

    found: dict[str, torch.Tensor] = {}
    left = list(images)
    for name, base in program_inputs(spec):
        each = spec.inputs[base]
        if each.form() == "image":
            if not left:
                raise _missing(name, "--image FILE" + (" --image FILE" if images else ""))
            assert each.size is not None
            found[name] = read_image(left.pop(0), size=each.size)
        elif each.form() == "tokens":
            if text is None:
                raise _missing(name, '--text "..."')
            end = spec.blocks[0].attention.mask != "causal"
            found[name] = text_ids(text, each, longest=spec.tokens_of(base), end=end)
        else:
            raise MultiwayError.one(
                "missing-input", f"{name!r} are vectors, which run cannot read from files",
                place="run", expected="mw.compile(...) in Python",
            )  # fmt: skip
    if left:
        raise MultiwayError.one(
            "unknown-input",
            f"head {spec.head_name!r} reads no image {str(left[0])!r}",
            place="--image",
        )
    return found


def program_inputs(spec: Spec) -> list[tuple[str, str]]:
    """(name in the program, input of the spec) of everything the head reads."""
    from multiway.compiler.build import head_of
    from multiway.compiler.heads.classification import base_input

    head = head_of(spec)
    passes = getattr(head, "passes", ())
    names = dict.fromkeys(name for each in passes for name in each) or head.inputs(spec)
    return [(name, base_input(spec, name) or name) for name in names]


def _missing(name: str, option: str) -> MultiwayError:
    return MultiwayError.one(
        "missing-input", f"the head reads {name!r}", place="run", expected=option
    )


def look(model: Model, inputs: dict[str, torch.Tensor], tokens: int) -> dict[str, Any]:
    """What a head says, as plain data."""
    import torch

    kind = getattr(model.spec.head, "kind", "")
    with torch.inference_mode():
        match kind:
            case "causal_lm":
                return _continue(model, inputs, tokens)
            case "prefix_lm":
                logits = model(**inputs)
                return {"logits": list(logits.shape), "next": _top(logits[0, -1])}
            case "contrastive":
                return _match(model, inputs)
            case "classification":
                logits = model(**inputs)
                return {"logits": list(logits.shape), "classes": _top(logits[0])}
            case _:
                return _describe(model(**inputs))


def _top(logits: torch.Tensor) -> list[dict[str, Any]]:
    best = logits.float().softmax(-1).topk(min(TOP, logits.shape[-1]))
    return [
        {"id": int(i), "probability": round(float(p), 6)}
        for p, i in zip(best.values, best.indices, strict=True)
    ]


def _match(model: Model, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    first, second = (model.run(f"encode_{name}", **{name: x}) for name, x in inputs.items())
    return {"embedding": list(first.shape), "cosine": round(float((first * second).sum()), 6)}


def _describe(features: torch.Tensor) -> dict[str, Any]:
    return {
        "features": list(features.shape),
        "mean": round(float(features.mean()), 6),
        "std": round(float(features.std()), 6),
    }


def _continue(model: Model, inputs: dict[str, torch.Tensor], tokens: int) -> dict[str, Any]:
    """Greedy tokens behind the text, through the cache."""
    import torch

    from multiway.runtime.media import ids_text
    from multiway.runtime.model import new_cache

    ((name, prompt),) = inputs.items()
    length = prompt.shape[1]
    longest = model.spec.tokens_of(name)
    count = tokens if longest is None else min(tokens, longest - length)
    cache = new_cache(model, batch=1, slots=length + count)
    logits, cache = model.run("prefill", **{name: prompt, "cache": cache})
    found: list[int] = []
    for step in range(count):
        new = logits[:, -1:].argmax(-1)
        found.append(int(new))
        if step + 1 < count:
            positions = torch.full((1, 1), length + step)
            given = {name: new, "positions": positions, "cache": cache}
            logits, cache = model.run("decode", **given)
    source = model.spec.inputs[name]
    return {"prompt_tokens": length, "new_ids": found, "new_text": ids_text(found, source)}
