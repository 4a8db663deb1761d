"""Histories of the depth mix in autograd: who gets which gradient, and what lives how long."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from mixing import (
    grads_of,
    history_of,
    leaves,
    loss_of,
    mix_reference,
    reference,
    same,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multiway.runtime.kernels.mix import append, fused_mix, mix

pytestmark = pytest.mark.usefixtures("in_double")


def test_a_backward_that_fails_leaves_nothing_behind(path: str) -> None:
    x, weights = leaves(1, 1, 3, 4)[0], leaves(1, 1, 1)[0]
    middle = x * 1
    history = append(None, middle)
    (y,) = mix(history, weights)
    fail = [True]

    def refuse(_: Tensor) -> None:
        if fail[0]:
            raise ValueError("stop")

    weights_used = weights * 1
    (z,) = mix(history, weights_used)
    weights_used.register_hook(refuse)
    with pytest.raises(ValueError, match="stop"):
        (y + z).sum().backward(retain_graph=True)
    fail[0] = False
    x.grad = None
    (y + z).sum().backward()
    torch.testing.assert_close(x.grad, (2 * weights.detach()).expand(1, 3, 4))


def test_a_mix_that_nobody_reads(path: str) -> None:
    hiddens, weights = leaves(2, 1, 3, 4), leaves(2, 2, 2)
    history = history_of(hiddens)
    mix(history, weights[0])
    used = mix(history, weights[1])[1]
    expected = mix_reference(hiddens, weights[1])[1]
    inputs = [*hiddens, *weights]
    same(grads_of(used.sum(), inputs), grads_of(expected.sum(), inputs))


def test_entries_that_need_no_gradient(path: str) -> None:
    hiddens, weights = leaves(3, 1, 3, 4), leaves(1, 2, 3)[0]
    hiddens[1] = hiddens[1].detach()
    inputs = [hiddens[0], hiddens[2], weights]
    found = grads_of(loss_of(mix(history_of(hiddens), weights), 1), inputs)
    same(found, grads_of(loss_of(mix_reference(hiddens, weights), 1), inputs))
    with torch.no_grad():
        frozen = history_of(hiddens)
    found = grads_of(loss_of(mix(frozen, weights), 1), inputs)
    same(found, grads_of(loss_of(mix_reference(hiddens, weights), 1), inputs))


def test_gradients_of_entries_and_their_hooks_see_everything(path: str) -> None:
    x, weights = leaves(1, 1, 3, 4)[0], leaves(1, 2, 1)[0]
    middle = x * 2
    history = append(None, middle)
    loss = loss_of(mix(history, weights), 1) + history[0].square().sum()
    (found,) = torch.autograd.grad(loss, [history[0]], retain_graph=True)
    middle.retain_grad()
    loss.backward()
    plain = middle.detach().requires_grad_()
    expected = loss_of(mix_reference([plain], weights), 1) + plain.square().sum()
    (expected,) = torch.autograd.grad(expected, [plain])
    same([found, middle.grad, x.grad], [expected, expected, 2 * expected])  # type: ignore


def test_branches_share_a_beginning(path: str) -> None:
    hiddens, weights = leaves(4, 1, 3, 4), leaves(1, 2, 3)[0]
    stem = history_of(hiddens[:2], capacity=4)
    left, right = (append(stem, x, capacity=4) for x in hiddens[2:])
    assert [len(h) for h in (stem, left, right)] == [2, 3, 3]
    found = loss_of([*mix(left, weights), *mix(right, weights), *mix(stem, weights[:, :2])], 1)
    lists = hiddens[:3], [*hiddens[:2], hiddens[3]]
    expected = loss_of(
        [
            *mix_reference(lists[0], weights),
            *mix_reference(lists[1], weights),
            *mix_reference(hiddens[:2], weights[:, :2]),
        ],
        1,
    )
    inputs = [*hiddens, weights]
    same(grads_of(found, inputs), grads_of(expected, inputs))


def test_a_history_longer_than_its_capacity(path: str) -> None:
    hiddens, weights = leaves(4, 1, 3, 4), leaves(1, 2, 4)[0]
    same(mix(history_of(hiddens, capacity=2), weights), mix_reference(hiddens, weights))


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_entries_are_copied_only_for_products(path: str, dtype: torch.dtype, learns: bool) -> None:
    hiddens = [x.detach().to(dtype).requires_grad_(learns) for x in leaves(3, 1, 3, 4)]
    weights = leaves(1, 2, 3)[0].detach().to(dtype)
    with torch.set_grad_enabled(learns):
        history = history_of(hiddens)
        assert history.buffer is not None and history.buffer.data is None
        mix(history, weights)
        copied = path == "plain"
        assert (history.buffer.data is not None) == copied
        if copied:
            longer = append(history, hiddens[0], capacity=3)
            same(longer.stacked(), torch.stack([*hiddens, hiddens[0]]))
            same(history.stacked(), torch.stack(hiddens))


def test_a_history_that_was_changed_is_read_as_it_is(path: str) -> None:
    hiddens, weights = leaves(3, 1, 3, 4), leaves(1, 2, 2)[0]
    history = history_of(hiddens[:2])
    history[0] = hiddens[2]
    lists = [hiddens[2], hiddens[1]]
    found, expected = mix(history, weights), mix_reference(lists, weights)
    same(found, expected)
    same(grads_of(loss_of(found, 1), hiddens), grads_of(loss_of(expected, 1), hiddens))


def test_checkpoint_of_a_region_that_holds_the_mix(path: str) -> None:
    hiddens, weights = leaves(3, 2, 3, 4), leaves(2, 2, 3)
    plan = {"norm": "layer_norm", "eps": 1e-5, "normed": [0], "raw": [1]}
    history = history_of(hiddens)
    outputs = [
        *checkpoint(lambda h, w: fused_mix(h, w, **plan), history, weights[0], use_reentrant=False),
        *fused_mix(history, weights[1], **plan),
    ]
    expected = [y for w in weights for y in reference(hiddens, w, **plan)]
    inputs = [*hiddens, *weights]
    same(grads_of(loss_of(outputs, 1), inputs), grads_of(loss_of(expected, 1), inputs))


def test_checkpoint_of_a_region_that_appends_too(path: str) -> None:
    hiddens, weights = leaves(3, 2, 3, 4), leaves(2, 2, 3)

    def region(history: Any, x: Tensor, w: Tensor) -> Any:
        longer = append(history, x * 2, capacity=4)
        return mix(longer, w)[0], longer

    history = history_of(hiddens[:2], capacity=4)
    y, longer = checkpoint(region, history, hiddens[2], weights[0], use_reentrant=False)
    lists = [*hiddens[:2], hiddens[2] * 2]
    expected = [mix_reference(lists, weights[0])[0], *mix_reference(lists, weights[1])]
    inputs = [*hiddens, *weights]
    found = loss_of([y, *mix(longer, weights[1])], 1)
    same(grads_of(found, inputs), grads_of(loss_of(expected, 1), inputs))


def test_a_changed_hidden_is_noticed(path: str) -> None:
    x, weights = torch.randn(1, 3, 4), leaves(1, 1, 1)[0]
    middle = x.requires_grad_() * 2
    (y,) = mix(append(None, middle), weights)
    middle.add_(1)
    with pytest.raises(RuntimeError, match=r"modified .*inplace"):
        y.sum().backward()


def test_a_hidden_changed_before_the_mix_is_read_as_it_is(path: str) -> None:
    x, weights = leaves(1, 1, 3, 4)[0], leaves(1, 1, 1)[0]
    for base in (x, x.detach()):
        middle = base * 2
        history = append(None, middle, capacity=1)
        middle.mul_(3)
        (y,) = mix(history, weights)
        same([y], [weights * 6 * x])
    middle = x * 2
    history = append(None, middle)
    middle.mul_(3)
    same(grads_of(mix(history, weights)[0].sum(), [x]), [(6 * weights).expand(x.shape)])


@pytest.mark.parametrize("form", ["list", "history"])
def test_a_second_derivative_is_refused(path: str, form: str) -> None:
    hiddens, weights = leaves(2, 1, 3, 4), leaves(1, 1, 2)[0]
    history = hiddens if form == "list" else history_of(hiddens)
    loss = mix(history, weights)[0].square().sum()

    def twice() -> None:
        (grad,) = torch.autograd.grad(loss, [hiddens[0]], create_graph=True)
        grad.sum().backward()

    with pytest.raises(RuntimeError, match="fused_mix"):
        twice()


def test_hiddens_are_freed_with_the_history(path: str) -> None:
    gc.collect()
    gc.disable()
    try:
        x, weights = leaves(1, 1, 3, 4)[0], leaves(1, 1, 2)[0]
        middle = x * 2
        seen = weakref.ref(middle)
        (y,) = mix(append(append(None, x), middle), weights)
        del middle
        assert seen() is None or y is not None
        y.sum().backward()
        del y
        assert seen() is None, "a circle keeps it alive"
    finally:
        gc.enable()


def test_sources_get_one_buffer_each(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The point of the history: later mixes add where the first wrote.
    hiddens, weights = [x * 1 for x in leaves(3, 1, 3, 4)], leaves(4, 1, 3)
    seen: list[int | None] = []
    from multiway.runtime.kernels.mix import op

    plain = op.backward

    def spy(*args: Any) -> Any:
        found = plain(*args)
        seen.extend(None if b is None else b.data_ptr() for b in args[3].into)
        seen.extend(b.data_ptr() for b in found.sources)
        return found

    monkeypatch.setattr(op, "backward", spy)
    history = history_of(hiddens)
    torch.stack([mix(history, w)[0] for w in weights]).sum().backward()
    assert all(s.slot is not None and s.slot._grad is None for s in history.sources)
    assert len(seen) == 24 and seen[:3] == [None] * 3
    assert all(seen[i : i + 3] == seen[3:6] for i in range(3, 24, 3))
