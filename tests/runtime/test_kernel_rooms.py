"""Entries of a history that are written where its buffer lies."""

from __future__ import annotations

import pytest
import torch
from mixing import history_of, leaves, mix_reference, same
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels import prepacked
from multiway.runtime.kernels.linear_sum import linear_sum
from multiway.runtime.kernels.mix import append, fused_mix, mix
from multiway.runtime.kernels.mix import buffer as module
from multiway.runtime.kernels.mix.history import History

pytestmark = pytest.mark.usefixtures("in_double")
SHAPE = (1, 3, 4)


@pytest.fixture(autouse=True)
def small_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST", 0)


def summed(room: History | None, biased: bool = True) -> Tensor:
    torch.manual_seed(1)
    x, weights, biases = torch.randn(SHAPE), torch.randn(2, 4, 4), torch.randn(2, 4)
    return linear_sum(x, [x, -x], [*weights], [*biases] if biased else [], room=room)


def place(history: History, index: int) -> int:
    assert history.buffer is not None and history.buffer.data is not None
    return history.buffer.data[index].data_ptr()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_sum_lies_where_it_is_appended(path: str, mode: type, biased: bool) -> None:
    with mode():
        history = history_of([torch.randn(SHAPE)], capacity=3)
        for index in (1, 2):
            x = summed(history, biased)
            same([x], [summed(None, biased)])
            assert x.data_ptr() == place(history, index) and x._base is None
            history = append(history, x)
        assert history.intact()  # writing one entry is no change of another
        weights = torch.randn(2, 3)
        same(mix(history, weights), mix_reference(list(history), weights))
        assert summed(history).data_ptr() not in [place(history, i) for i in range(3)], "it is full"


def test_branches_do_not_write_over_one_another(path: str) -> None:
    with torch.no_grad():
        begin = history_of([torch.randn(SHAPE)], capacity=3)
        first, second = summed(begin), summed(begin)
        assert first.data_ptr() == place(begin, 1) != second.data_ptr()
        second *= 2
        weights = torch.randn(2, 2)
        for x in (second, first, second):  # products of the other branch go elsewhere
            wanted = [begin[0].clone(), x.clone()]
            same(mix(append(begin, x), weights), mix_reference(wanted, weights))
        same([second], [first * 2])


def test_only_what_fits_is_placed() -> None:
    with torch.no_grad():
        history = history_of([torch.randn(SHAPE)], capacity=3)
        for like in (torch.randn(2, 3, 4), torch.randn(1, 3, 5), torch.randn(SHAPE).float()):
            assert history.room(torch.randn(SHAPE)) is not None or history.room(like) is None
            assert history.room(like) is None
        assert history_of([torch.randn(SHAPE)], capacity=0).room(torch.randn(SHAPE)) is None
        x = linear_sum(
            torch.randn(SHAPE), [torch.randn(SHAPE)], [torch.randn(4, 4)], room=[torch.randn(SHAPE)]
        )
        assert x.shape == SHAPE


def test_what_learns_or_is_small_is_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    history = history_of(leaves(1, *SHAPE), capacity=3)
    summed(history)
    begun(history)
    assert history.buffer is not None and history.buffer.data is None
    monkeypatch.setattr(module, "FEWEST", 13)
    with torch.no_grad():
        summed(history)
        begun(history)
    assert history.buffer.data is None


# --- a stream that a sum becomes of -----------------------------------------------------------


def begun(history: History | list[Tensor], placed: bool = True) -> tuple[Tensor, ...]:
    """A normalised stream, and one as it is, plus offsets."""
    torch.manual_seed(2)
    dtype = history[0].dtype
    weights, offsets = torch.randn(3, len(history), dtype=dtype), torch.randn(2, 4, dtype=dtype)
    plan = {"norm": "rms_norm", "eps": 1e-5, "normed": [1], "raw": [0, 1]}
    return fused_mix(history, weights, offsets=[*offsets], **plan, placed=placed)


def added(residual: Tensor, history: History | None) -> Tensor:
    torch.manual_seed(3)
    xs, weights, bias = torch.randn(2, *SHAPE), torch.randn(2, 4, 4), torch.randn(2, 4)
    given = [[*each.to(residual)] for each in (xs, weights, bias)]
    return linear_sum(residual, *given, room=history)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_sum_is_added_to_what_a_mix_began(
    path: str, mode: type, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if copies:  # of weights, which only float32 and bfloat16 have
        monkeypatch.setattr(prepacked, "linears", lambda x, w, b: [F.linear(x, w[0])])
    with mode():
        history = history_of([torch.randn(SHAPE)], capacity=3)
        for index in (1, 2):
            expected = begun(list(history), placed=False)
            found = begun(history)
            same(found, expected)
            assert found[-1].data_ptr() == place(history, index)
            x = added(found[-1], history)
            same([x], [added(expected[-1], None)])
            assert x is found[-1] and x._base is None
            history = append(history, x)
        assert history.intact()
        weights = torch.randn(2, 3)
        same(mix(history, weights), mix_reference(list(history), weights))
        assert begun(history)[-1].data_ptr() not in [place(history, i) for i in range(3)]


def test_what_was_added_once_is_a_hidden_and_stays(path: str) -> None:
    with torch.no_grad():
        begin = history_of([torch.randn(SHAPE)], capacity=3)
        stream = begun(begin)[-1]
        again = begun(begin)[-1]  # a second mix of the list gets memory of its own
        assert again.data_ptr() != stream.data_ptr() == place(begin, 1)
        same([again], [stream])
        assert added(again, begin) is not again
        hidden = added(stream, begin)
        before = hidden.clone()
        assert added(hidden, begin) is not hidden  # a branch that goes on behind it
        same([hidden], [before])


def test_a_stream_that_the_sum_cannot_add_to_lies_apart(path: str) -> None:
    half = history_of([torch.randn(SHAPE).bfloat16()], capacity=3)
    whole = history_of([torch.randn(SHAPE)], capacity=3)
    with torch.no_grad():
        begun(half)
        with torch.autocast("cpu"):
            begun(whole)
        for history in (half, whole):
            assert history.buffer is not None and not history.buffer.begun
        stream = begun(whole)[-1]
        assert stream.data_ptr() == place(whole, 1)
    before = stream.clone()
    assert added(stream, whole) is not stream  # a checkpoint may run it twice
    same([stream], [before])
