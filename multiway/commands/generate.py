"""multiway generate: continue a text."""

from __future__ import annotations

from typing import Annotated

import typer

from multiway import api
from multiway.commands.common import (
    HeadOption,
    JsonOption,
    SetOption,
    SpecArgument,
    TokenizerOption,
    WeightsOption,
    note,
    print_json,
    read_spec,
    say_if_random,
)
from multiway.specs import MultiwayError, Spec


def command(
    source: SpecArgument,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    ids: Annotated[
        str | None, typer.Option(help="Token ids instead of a text, e.g. 12,7,99.")
    ] = None,
    head: HeadOption = None,
    weights: WeightsOption = None,
    tokenizer: TokenizerOption = None,
    tokens: Annotated[int, typer.Option(min=1, max=65536, help="Most tokens to write.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a text with the most likely tokens, through the cache."""
    from multiway.runtime.generation.greedy import greedy
    from multiway.runtime.tasks.tokenizer import checked_ids, open_tokenizer

    spec = read_spec(source, settings).for_head(head)
    name = text_of(spec)
    source_input = spec.inputs[name]
    text = open_tokenizer(tokenizer, source_input, end=False) if tokenizer or not ids else None
    given = parse_ids(ids) if ids else []
    if not ids:
        if prompt is None:
            raise MultiwayError.one(
                "missing-input", "there is nothing to continue", place="generate",
                expected='--prompt "..." or --ids 12,7,99',
            )  # fmt: skip
        assert text is not None
        given = text.encode(prompt)
    longest = spec.tokens_of(name)
    checked_ids(given, source_input, longest=longest, place="--ids" if ids else "--prompt")
    model = api.compile(spec, seed=seed, weights=weights)
    say_if_random(model)
    end = source_input.special.end if source_input.special else None
    every = max(1, tokens // 8)

    def step(count: int) -> None:
        if count % every == 0:
            note(f"{count} of {tokens} tokens")

    (new,) = greedy(model, [given], tokens=tokens, end=end, step=step)
    result = {"prompt_ids": given, "ids": new, "random_weights": model.random}
    if text is not None:
        result = {"text": text.decode(new), **result}
    if as_json:
        print_json(result)
    else:
        typer.echo(result.get("text", " ".join(map(str, new))))


def text_of(spec: Spec) -> str:
    """The input that the head continues. Raises MultiwayError for heads that continue none."""
    from multiway.compiler.assemble.build import head_of

    answer = head_of(spec).answer(spec)
    if answer is None or answer.continues is None:
        raise MultiwayError.one(
            "unknown-head",
            f"head {spec.head_name!r} does not continue texts",
            place=spec.name,
            expected="a head of kind causal_lm; captions come from `multiway predict`",
        )
    return answer.continues


def parse_ids(text: str) -> list[int]:
    """`12,7,99` as numbers. Raises MultiwayError."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.lstrip("-").isdigit() and len(part) < 12 for part in parts):
        raise MultiwayError.one(
            "wrong-type", f"{text!r} are not ids", place="--ids", expected="numbers, as in 12,7,99"
        )
    return [int(part) for part in parts]
