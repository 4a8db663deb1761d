"""Greedy generation through the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from multiway.runtime.model import Model, new_cache
from multiway.specs.errors import MultiwayError

Step = Callable[[int], None]
"""Called with the number of tokens that every row has got so far."""


def _quiet(_: int) -> None:
    pass


def room_for(model: Model, name: str, length: int, tokens: int) -> int:
    """How many of `tokens` fit behind a text of `length`. Raises MultiwayError where none does."""
    longest = model.spec.tokens_of(name)
    room = tokens if longest is None else min(tokens, longest - length)
    if room < 1:
        raise MultiwayError.one(
            "too-long",
            f"the text has {length} tokens and there are positions for {longest}: "
            "no room for another",
            place=name,
        )
    return room


@torch.inference_mode()
def greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    end: int | None = None,
    step: Step = _quiet,
) -> list[list[int]]:
    """The most likely continuation of each prompt, at most `tokens` long, up to the `end` token.

    Prompts may differ in length: they are padded on the right, and every row goes on where its own
    prompt ends. model: a causal_lm. Raises MultiwayError.
    """
    (name,) = [e.name for e in model.expected("prefill") if not e.many]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    count = room_for(model, name, longest, tokens)
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    cache = new_cache(model, batch=len(prompts), slots=longest + count)
    given = {name: padded.to(model.device), "cache": cache}
    logits, cache = model.run("prefill", **given)[:2]
    last = lengths.to(model.device)
    logits = logits[torch.arange(len(prompts), device=model.device), last - 1]
    found: list[list[int]] = [[] for _ in prompts]
    for i in range(count):
        new = logits.argmax(-1)
        done = _add(found, new.tolist(), end)
        step(i + 1)
        if done or i + 1 == count:
            break
        given = {name: new[:, None], "positions": (last + i)[:, None], "cache": cache}
        logits, cache = model.run("decode", **given)[:2]
        logits = logits[:, -1]
    return found


def _add(found: list[list[int]], new: Sequence[int], end: int | None) -> bool:
    """Adds a token to every row that has not ended; whether all have."""
    for row, token in zip(found, new, strict=True):
        if not row or row[-1] != end:
            row.append(token)
    return end is not None and all(row[-1] == end for row in found)


@torch.inference_mode()
def caption(
    model: Model, prefix: torch.Tensor, *, tokens: int, step: Step = _quiet
) -> list[list[int]]:
    """The most likely words behind each prefix, word by word, up to the end token.

    model: a prefix_lm whose text names its start, end and mask tokens. prefix: a batch of its
    first input. A step reads the word found last and a mask token, whose key and value the next
    step writes over. Raises MultiwayError.
    """
    first, text = [e.name for e in model.expected("prefill") if not e.many]
    special = model.spec.inputs[text].special
    if special is None or special.start is None or special.mask is None:
        raise MultiwayError.one(
            "missing-key",
            f"writing a text needs to know the start and the mask token of {text!r}",
            place=model.spec.name,
            expected=f"inputs: {{{text}: {{special: {{start: ..., end: ..., mask: ...}}}}}}",
        )
    batch = prefix.shape[0]
    count = room_for(model, text, 2, tokens)
    slots = (model.spec.tokens_of(first) or prefix.shape[1]) + count + 2
    cache = new_cache(model, batch=batch, slots=slots)
    word = torch.full((batch,), special.start, device=model.device)
    mask = torch.full_like(word, special.mask)
    found: list[list[int]] = [[] for _ in range(batch)]
    for i in range(count):
        pair = torch.stack([word, mask], 1)
        if i == 0:
            result = model.run("prefill", **{first: prefix, text: pair, "cache": cache})
        else:
            positions = torch.tensor([[i, i + 1]], device=model.device).expand(batch, 2)
            result = model.run("decode", **{text: pair, "positions": positions, "cache": cache})
        logits, cache = result[:2]
        word = logits[:, 1].argmax(-1)
        step(i + 1)
        if _add(found, word.tolist(), special.end):
            break
    return found
