"""A compiled model: shared parameters, programs made when asked for, copies, types, devices."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

import multiway as mw
from multiway.runtime.model import Model, new_cache
from multiway.specs.errors import MultiwayError

NAME = "mudd-pythia-test"
TOKENS = torch.arange(10).reshape(2, 5)


def same(a: Any, b: Any) -> bool:
    return bool(torch.equal(a, b))


def test_programs_share_the_parameters_of_the_model() -> None:
    model = mw.compile(NAME)
    own = {id(p) for p in model.parameters()}
    for program in model.programs.values():
        assert {id(p) for p in program.parameters()} <= own
    names = set(model.state_dict())
    assert names == set(mw.build(NAME).params), "programs add nothing to the state dict"


def test_a_program_is_made_once_and_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    from multiway.compiler import compile as compiling

    original = compiling.lower

    def noted(graph: Any, containers: Any, **how: Any) -> Any:
        made.append(graph.name)
        assert not gc.isenabled()  # it would look at all that is made here, again and again
        return original(graph, containers, **how)

    monkeypatch.setattr(compiling, "lower", noted)
    model = mw.compile(NAME)
    assert made == []
    assert list(model.programs) == ["forward", "loss", "prefill", "decode"]
    assert len(model.programs) == 4
    model(tokens=TOKENS)
    model(tokens=TOKENS)
    assert made == ["forward"]
    assert gc.isenabled()


def test_a_step_of_training_changes_every_program() -> None:
    model = mw.compile(NAME)
    before = model(tokens=TOKENS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss, _ = model.loss(tokens=TOKENS, labels=TOKENS)
    loss.backward()
    optimizer.step()
    assert not same(model(tokens=TOKENS), before)
    after, _ = model.loss(tokens=TOKENS, labels=TOKENS)
    assert after < loss


@pytest.mark.parametrize("made", [False, True], ids=["before-programs", "after-programs"])
def test_a_copy_has_parameters_of_its_own(made: bool) -> None:
    model = mw.compile(NAME)
    before = model(tokens=TOKENS) if made else None
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other(tokens=TOKENS).any(), "the copy runs on its own weights"
    assert model(tokens=TOKENS).any(), "the original keeps its own"
    assert before is None or same(model(tokens=TOKENS), before)
    other.load_state_dict(model.state_dict())
    assert same(other(tokens=TOKENS), model(tokens=TOKENS))


def test_a_model_can_change_its_type() -> None:
    model = mw.compile(NAME)
    model(tokens=TOKENS)
    assert model.double()(tokens=TOKENS).dtype == torch.float64
    assert model.bfloat16()(tokens=TOKENS).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_is_made_in_a_type(dtype: torch.dtype) -> None:
    model = mw.compile(NAME, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    logits = model(tokens=TOKENS)
    assert logits.dtype == dtype
    exact = mw.compile(NAME, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits.double(), exact(tokens=TOKENS), atol=0.05, rtol=0.05)


def test_a_model_without_memory_has_shapes_only() -> None:
    model = mw.compile("mudd-pythia-2.8b", device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    logits = model(tokens=torch.zeros(1, 7, dtype=torch.int64, device="meta"))
    assert logits.shape == (1, 7, 50432)


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiway.runtime.memory.total_bytes", lambda: 1 << 18)
    with pytest.raises(MultiwayError) as caught:
        mw.compile(NAME)
    assert caught.value.problems[0].code == "too-large"


def test_a_model_is_random_until_weights_are_read() -> None:
    model, other = mw.compile(NAME), mw.compile(NAME, seed=1)
    state = other.state_dict()
    assert model.random
    with pytest.raises(RuntimeError):
        model.load_state_dict({**state, "none": torch.ones(1)})
    model.load_state_dict({}, strict=False)
    model.load_state_dict({k: v for k, v in state.items() if "norm" not in k}, strict=False)
    assert model.random, "norms are still those it began with"
    fresh = {k: v for k, v in state.items() if not k.startswith("heads.")}
    model.load_state_dict(fresh, strict=False)
    assert not model.random
    assert other.random and not copy.deepcopy(model).random
    other.load_state_dict(model.state_dict(), assign=True)
    assert not other.random


def test_an_empty_cache_has_the_shapes_of_the_program() -> None:
    model = mw.compile(NAME, dtype=torch.float64)
    cache = new_cache(model, batch=3, slots=9)
    assert len(cache) == 1 + 2 * 4
    assert cache[0].tolist() == [0, 0, 0]
    assert {(tuple(t.shape), t.dtype) for t in cache[1:]} == {((3, 4, 9, 16), torch.float64)}
    narrow = new_cache(model, batch=1, slots=2, dtype=torch.bfloat16)
    assert {t.dtype for t in narrow[1:]} == {torch.bfloat16}


def test_a_cache_goes_in_and_another_comes_out() -> None:
    model = mw.compile(NAME)
    cache = new_cache(model, batch=2, slots=6)
    _, filled = model.run("prefill", tokens=TOKENS, cache=cache)
    assert not any(t.any() for t in cache), "the cache that was given is unchanged"
    assert all(t[:, :, :5].any() and not t[:, :, 5:].any() for t in filled[1:])


def test_a_model_says_what_it_is() -> None:
    text = repr(mw.compile(NAME))
    total = sum(param.size for param in mw.build(NAME).params.values())
    assert f"{NAME}, head lm: {total:,} parameters, forward, loss, prefill, decode" in text


def test_a_model_names_what_its_programs_take() -> None:
    model: Model = mw.compile("beit3-test", head="nlvr2")
    names = [each.name for each in model.expected("forward")]
    assert names == ["image_a", "image_b", "text", "text_padding"]
    assert [each.name for each in model.expected("loss")] == [*names, "labels"]
