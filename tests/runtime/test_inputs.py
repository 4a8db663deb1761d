"""What a user gives to a program is checked, and said in the words of the spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import multiway as mw
from multiway.runtime.inputs import Expected, check_inputs
from multiway.runtime.model import Model, new_cache
from multiway.specs.errors import MultiwayError

LM, BEIT = "mudd-pythia-test", "beit3-test"
TOKENS = torch.arange(6).reshape(2, 3)


@pytest.fixture(scope="module")
def lm() -> Model:
    return mw.compile(LM)


@pytest.fixture(scope="module")
def vqa() -> Model:
    return mw.compile(BEIT, head="vqa")


def error(model: Model, program: str, **inputs: Any) -> str:
    with pytest.raises(MultiwayError) as caught:
        model.run(program, **inputs)
    return str(caught.value)


def image(batch: int = 2, side: int = 32) -> torch.Tensor:
    return torch.zeros(batch, 3, side, side)


# Texts, literally


def test_every_problem_is_named_at_once(vqa: Model) -> None:
    text = error(vqa, "forward", imag=image(), text=TOKENS.float(), text_padding=TOKENS[:, :2])
    assert text == (
        "input: error[unknown-input]: 'imag' is not an input of 'forward'\n"
        "  expected: one of image, text, text_padding\n"
        "  nearest:  image\n"
        "\n"
        "input: error[missing-input]: 'forward' needs 'image'\n"
        "\n"
        "input: error[wrong-input]: 'text' holds float32\n"
        "  expected: int\n"
        "\n"
        "input: error[wrong-input]: 'text_padding' has shape [2, 2]\n"
        "  expected: [B, T], with B = 2 as in 'text', with T = 3 as in 'text'"
    )


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"tokens": [1, 2]}, "error[wrong-input]: 'tokens' is a list\n  expected: a tensor"),
        (
            {"tokens": TOKENS[0]},
            "error[wrong-input]: 'tokens' has shape [3]\n  expected: [B, T]",
        ),
        (
            {"tokens": TOKENS.to(torch.uint8)},
            "error[wrong-input]: 'tokens' holds uint8\n  expected: int",
        ),
        (
            {"tokens": torch.zeros(1, 65, dtype=torch.int64)},
            "error[too-long]: 'tokens' has 65 tokens, there are positions for 64",
        ),
        (
            {"tokens": TOKENS - 1},
            "error[out-of-vocabulary]: 'tokens' holds the id -1; the vocabulary ends at 255",
        ),
        (
            {"tokens": TOKENS + 251},
            "error[out-of-vocabulary]: 'tokens' holds the id 256; the vocabulary ends at 255",
        ),
    ],
)
def test_tokens_are_checked(lm: Model, inputs: dict[str, Any], text: str) -> None:
    assert error(lm, "forward", **inputs) == f"input: {text}"


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {"image": image(side=40)},
            "error[wrong-input]: 'image' has shape [2, 3, 40, 40]\n"
            "  expected: [B, 3, 32, 32], with B = 2 as in 'image'",
        ),
        (
            {"image": image(3)},
            "error[wrong-input]: 'text' has shape [2, 3]\n"
            "  expected: [B, T], with B = 3 as in 'image'",
        ),
        ({"image": image().int()}, "error[wrong-input]: 'image' holds int32\n  expected: float"),
        (
            {"text_padding": torch.zeros(2, 3)},
            "error[wrong-input]: 'text_padding' holds float32\n  expected: bool",
        ),
    ],
)
def test_images_and_padding_are_checked(vqa: Model, inputs: dict[str, Any], text: str) -> None:
    given = {"image": image(), "text": TOKENS} | inputs
    assert error(vqa, "forward", **given) == f"input: {text}"


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            TOKENS[:, :2],
            "error[wrong-input]: 'labels' has shape [2, 2]\n"
            "  expected: [B, T], with B = 2 as in 'tokens', with T = 3 as in 'tokens'",
        ),
        (
            TOKENS - 99,
            "error[out-of-vocabulary]: 'labels' holds the id -99; the classes end at 255",
        ),
        (
            TOKENS + 251,
            "error[out-of-vocabulary]: 'labels' holds the id 256; the classes end at 255",
        ),
        (TOKENS.float(), "error[wrong-input]: 'labels' holds float32\n  expected: int"),
    ],
)
def test_labels_are_checked(lm: Model, labels: torch.Tensor, text: str) -> None:
    assert error(lm, "loss", tokens=TOKENS, labels=labels) == f"input: {text}"


def test_labels_may_stand_for_nothing(lm: Model) -> None:
    nothing = torch.full_like(TOKENS, -100)
    assert lm.loss(tokens=TOKENS, labels=nothing)[1]["count"] == 0


def test_soft_labels_are_not_class_numbers(vqa: Model) -> None:
    given = {"image": image(), "text": TOKENS}
    assert error(vqa, "loss", **given, labels=torch.zeros(2, 17).int()) == (
        "input: error[wrong-input]: 'labels' holds int32\n  expected: float"
    )
    vqa.loss(**given, labels=torch.full((2, 17), 300.0))


def cut(cache: list[torch.Tensor]) -> list[torch.Tensor]:
    return cache[:-1]


def of_one_row(cache: list[torch.Tensor]) -> list[torch.Tensor]:
    return [cache[0], cache[1][:1], *cache[2:]]


def of_other_lengths(cache: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*cache[:2], cache[2][:, :, :4], *cache[3:]]


def of_numbers(cache: list[torch.Tensor]) -> list[Any]:
    return [*cache[:4], 3, *cache[5:]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (cut, "error[wrong-input]: 'cache' is a list of 9 tensors"),
        (
            of_one_row,
            "error[wrong-input]: 'cache[1]' has shape [1, 4, 5, 16]\n"
            "  expected: [B, 4, S, 16], with B = 2 as in 'tokens'",
        ),
        (
            of_other_lengths,
            "error[wrong-input]: 'cache[2]' has shape [2, 4, 4, 16]\n"
            "  expected: [B, 4, S, 16], with B = 2 as in 'tokens', with S = 5 as in 'cache[1]'",
        ),
        (of_numbers, "error[wrong-input]: 'cache[4]' is a int\n  expected: a tensor"),
    ],
)
def test_a_cache_is_checked(lm: Model, change: Callable[[Any], Any], text: str) -> None:
    cache = change(new_cache(lm, batch=2, slots=5))
    assert error(lm, "prefill", tokens=TOKENS, cache=cache) == f"input: {text}"


def test_a_cache_must_have_room(lm: Model) -> None:
    small = new_cache(lm, batch=2, slots=2)
    assert error(lm, "prefill", tokens=TOKENS, cache=small) == (
        "input: error[too-long]: 'cache' has 2 slots, and the tokens need 3"
    )
    cache = new_cache(lm, batch=2, slots=5)
    positions = torch.tensor([[3, 4, 5], [1, 2, 3]])
    assert error(lm, "decode", tokens=TOKENS, positions=positions, cache=cache) == (
        "input: error[too-long]: 'cache' has 5 slots, and the tokens need 6"
    )


def test_a_cache_must_have_room_for_the_prefix_too() -> None:
    captioning = mw.compile(BEIT, head="captioning")
    cache = new_cache(captioning, batch=2, slots=19)
    assert error(captioning, "prefill", image=image(), text=TOKENS, cache=cache) == (
        "input: error[too-long]: 'cache' has 19 slots, and the tokens need 20"
    )
    cache = new_cache(captioning, batch=2, slots=20)
    _, cache = captioning.run("prefill", image=image(), text=TOKENS, cache=cache)
    positions = torch.tensor([[2], [3]])
    given = {"text": TOKENS[:, :1], "positions": positions, "cache": cache}
    assert error(captioning, "decode", **given) == (
        "input: error[too-long]: 'cache' has 20 slots, and the tokens need 21"
    )


def test_positions_end_where_the_text_does(lm: Model) -> None:
    cache = new_cache(lm, batch=2, slots=100)
    given = {"tokens": TOKENS[:, :1], "cache": cache}
    assert error(lm, "decode", **given, positions=torch.tensor([[3], [64]])) == (
        "input: error[out-of-vocabulary]: 'positions' holds the id 64; the positions end at 63"
    )
    lm.run("decode", **given, positions=torch.tensor([[3], [63]]))


def test_vectors_are_limited_by_their_positions() -> None:
    spec = {
        "multiway": 1,
        "name": "vectors",
        "dims": {"depth": 1, "width": 8},
        "inputs": {"sound": {"modality": "audio", "features": 3, "context": 4}},
        "embed": {"audio": {"position": {"kind": "learned"}}},
        "block": {
            "norm": {"kind": "rms_norm", "eps": 1e-5},
            "attention": {"heads": 2},
            "ffn": {"hidden": 8},
        },
        "heads": {"features": {"kind": "features"}},
    }
    model = mw.compile(spec)
    assert error(model, "forward", sound=torch.zeros(1, 5, 3)) == (
        "input: error[too-long]: 'sound' has 5 tokens, there are positions for 4"
    )
    assert model(sound=torch.zeros(1, 4, 3)).shape == (1, 4, 8)


# What is taken


def test_an_absent_padding_is_none(vqa: Model) -> None:
    given = {"image": image(), "text": TOKENS}
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(vqa(**given), vqa(**given, text_padding=none))
    assert not torch.equal(vqa(**given), vqa(**given, text_padding=TOKENS == 2))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_padding_may_be_numbers(vqa: Model, dtype: torch.dtype) -> None:
    given, padding = {"image": image(), "text": TOKENS}, TOKENS > 4
    assert torch.equal(
        vqa(**given, text_padding=padding), vqa(**given, text_padding=padding.to(dtype))
    )


def test_ids_may_be_narrow(lm: Model) -> None:
    assert torch.equal(lm(tokens=TOKENS.int()), lm(tokens=TOKENS))
    losses = [lm.loss(tokens=TOKENS, labels=labels)[0] for labels in (TOKENS, TOKENS.int())]
    assert torch.equal(*losses)


def test_inputs_come_in_the_order_of_the_program_whatever_the_order_given() -> None:
    expected = [
        Expected(name="a", shape=("B",), dtype="int"),
        Expected(name="b_padding", shape=("B", 2), dtype="bool"),
        Expected(name="b", shape=("B", 2), dtype="float"),
    ]
    a, b = torch.zeros(3).int(), torch.zeros(3, 2)
    for args, given in (((), {"b": b, "a": a}), ((a,), {"b": b}), ((a, None, b), {})):
        found = check_inputs("p", expected, args, given)
        assert found[0] is a and found[2] is b
        assert found[1].shape == (3, 2) and found[1].dtype == torch.bool


def test_a_program_that_is_not_there(lm: Model) -> None:
    assert error(lm, "encode", tokens=TOKENS) == (
        "mudd-pythia-test: error[unknown-program]: head 'lm' has no program 'encode'\n"
        "  expected: one of forward, loss, prefill, decode\n"
        "  nearest:  decode"
    )
    with pytest.raises(KeyError, match="no program 'encode'; there are forward, loss, prefill"):
        lm.programs["encode"]


def test_nothing_is_checked_when_a_program_is_called_itself(lm: Model) -> None:
    assert torch.equal(lm.programs["forward"](TOKENS), lm(tokens=TOKENS))
    with pytest.raises((IndexError, RuntimeError)):
        lm.programs["forward"](TOKENS + 1000)
