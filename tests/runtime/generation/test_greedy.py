"""Generation: cached = uncached, padded = unpadded, for every causal entry of the zoo."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import multiway as mw
from multiway.runtime.generation.greedy import caption, greedy
from multiway.runtime.model import Model
from multiway.specs import MultiwayError
from multiway.zoo import catalogue

TESTS = [entry.name for entry in catalogue() if entry.name.endswith("-test")]
CAUSAL = [
    (name, head)
    for name in TESTS
    for head, found in mw.load(name).heads.items()
    if getattr(found, "kind", "") == "causal_lm"
]


def livened(model: Model, *, seed: int = 3) -> Model:
    """Random weights large enough that tokens depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.15, generator=generator)
            parameter.add_(noise)
    return model


def uncached(model: Model, prompt: list[int], tokens: int) -> list[int]:
    """Greedy continuation by running the whole text again for every token."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(tokens=torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("name", "head"), CAUSAL)
def test_padded_rows_go_on_as_if_alone(name: str, head: str) -> None:
    check_padded_rows(mw.load(name).for_head(head))


GPT2 = {
    "multiway": 1,
    "name": "small-gpt2",
    "dims": {"depth": 2, "width": 32, "vocab": 256, "context": 64},
    "inputs": {"tokens": {"modality": "text", "vocab": "vocab", "context": "context"}},
    "embed": {"text": {"position": {"kind": "learned"}}},
    "block": {
        "norm": {"kind": "layer_norm", "eps": 1e-5},
        "attention": {"heads": 2, "mask": "causal", "bias": True},
        "ffn": {"hidden": "4 * width", "activation": "gelu", "bias": True},
    },
    "output": {"norm": True},
    "heads": {"lm": {"kind": "causal_lm", "tie": True}},
}


def test_padded_rows_of_learned_positions_and_a_tied_table_go_on_as_if_alone() -> None:
    check_padded_rows(mw.load(GPT2).for_head())


def check_padded_rows(spec: mw.Spec) -> None:
    """Under some weights a model says one word whatever it reads, and rows of it show nothing of
    what they have seen: others are drawn until all rows differ."""
    prompts = [[5, 9, 2, 7, 1, 1, 3], [8], [4, 4, 6]]
    for seed in range(3, 13):
        model = livened(mw.compile(spec, dtype=torch.float64), seed=seed)
        together = greedy(model, prompts, tokens=8)
        assert together == [uncached(model, prompt, 8) for prompt in prompts]
        if len({tuple(row) for row in together}) == 3:
            return
    raise AssertionError("rows are alike under all weights: the test sees nothing")


def test_generation_stops_at_the_end_token() -> None:
    model = livened(mw.compile("pythia-test"))
    (free,) = greedy(model, [[1, 2, 3]], tokens=6)
    end = free[2]
    first = free.index(end)
    assert greedy(model, [[1, 2, 3]], tokens=6, end=end) == [free[: first + 1]]


def test_generation_keeps_to_the_positions_there_are() -> None:
    model = mw.compile("mudd-pythia-test")
    (found,) = greedy(model, [[1] * 60], tokens=50)
    assert len(found) == 4
    with pytest.raises(MultiwayError, match="no room for another"):
        greedy(model, [[1] * 64], tokens=1)


def test_a_caption_is_what_the_whole_text_says() -> None:
    """Every word is the one that the uncached model puts under a mask behind the words so far."""
    model = livened(mw.compile("beit3-test", head="captioning", dtype=torch.float64))
    special = model.spec.inputs["text"].special
    assert special is not None
    assert special.mask is not None
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = caption(model, image, tokens=6)
    for row, words in enumerate(found):
        text = [0]
        for word in words:
            ids = torch.tensor([[*text, special.mask]])
            with torch.no_grad():
                logits = model(image=image[row : row + 1], text=ids)
            assert int(logits[0, -1].argmax()) == word
            text.append(word)


def test_a_caption_needs_a_mask_token() -> None:
    changes: Any = {"inputs.text.special": None}
    model = mw.compile("beit3-test", head="captioning", set=changes)
    with pytest.raises(MultiwayError, match="needs to know the start and the mask token"):
        caption(model, torch.zeros(1, 3, 32, 32), tokens=2)
