"""Histories of attention over depth in autograd: who gets which gradient, what lives how long."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from attending import PLAN, RAW, reference
from mixing import grads_of, history_of, leaves, loss_of, mix_reference, same
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multiway.runtime.kernels.depth_attention import depth_attention
from multiway.runtime.kernels.depth_attention.plan import Debt
from multiway.runtime.kernels.mix import append, mix

pytestmark = pytest.mark.usefixtures("in_double")


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_long_history_draws_several_sources_at_once(path: str, groups: int) -> None:
    torch.manual_seed(0)
    queries, start = leaves(17, 6), leaves(1, 1, 5, 6)[0]

    def run(router: Any, tracked: bool) -> Tensor:
        history: Any = None if tracked else []
        x = start
        for i, query in enumerate(queries):
            history = append(history, x, capacity=17) if tracked else [*history, x]
            plan = {**PLAN, "groups": groups}
            if i % 5 == 4:  # something else comes between
                x = (
                    x
                    + 0.3
                    * (mix if tracked else mix_reference)(history, query[:1].expand(1, i + 1))[0]
                )
            a, b = router(history, query, **plan)
            x = torch.tanh(a) + 0.5 * b
        return x.square().sum()

    wanted = [*queries, start]
    expected = grads_of(run(reference, False), wanted)
    same(grads_of(run(depth_attention, True), wanted), expected)


def test_a_backward_that_fails_leaves_nothing_behind(path: str) -> None:
    x, query = leaves(1, 1, 3, 4)[0], leaves(1, 4)[0]
    history = append(None, x * 1)
    (y,) = depth_attention(history, query, **RAW)
    used = query * 1
    (z,) = depth_attention(history, used, **RAW)
    fail = [True]

    def refuse(_: Tensor) -> None:
        if fail[0]:
            raise ValueError("stop")

    used.register_hook(refuse)
    with pytest.raises(ValueError, match="stop"):
        (y + z).sum().backward(retain_graph=True)
    fail[0] = False
    x.grad = None
    (y + z).sum().backward()
    same([x.grad], [torch.full((1, 3, 4), 2.0)])  # type: ignore[list-item]


def test_a_router_that_nobody_reads(path: str) -> None:
    hiddens, queries = leaves(3, 1, 3, 4), leaves(2, 4)
    history = history_of(hiddens)
    depth_attention(history, queries[0], **PLAN)
    used, expected = (f(h, queries[1], **PLAN)[1].square().sum() for f, h in
                      ((depth_attention, history), (reference, hiddens)))  # fmt: skip
    wanted = [*hiddens, *queries]
    same(grads_of(used, wanted), grads_of(expected, wanted))


def test_entries_that_need_no_gradient(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    hiddens[1] = hiddens[1].detach()
    wanted = [hiddens[0], hiddens[2], query]
    expected = grads_of(loss_of(reference(hiddens, query, **PLAN), 1), wanted)
    with torch.no_grad():
        frozen = history_of(hiddens)
    for history in (history_of(hiddens), frozen, hiddens):
        same(grads_of(loss_of(depth_attention(history, query, **PLAN), 1), wanted), expected)
    fixed = query.detach()
    for history in (history_of(hiddens), hiddens):
        found = grads_of(loss_of(depth_attention(history, fixed, **PLAN), 1), wanted)
        same(found, [*expected[:2], torch.zeros(4)])


def test_gradients_of_entries_and_their_hooks_see_everything(path: str) -> None:
    first, x, query = *leaves(2, 1, 3, 4), leaves(1, 4)[0]
    middle = x * 2
    history = append(append(None, first), middle)
    loss = loss_of(depth_attention(history, query, **RAW), 1) + history[1].square().sum()
    (found,) = torch.autograd.grad(loss, [history[1]], retain_graph=True)
    middle.retain_grad()
    loss.backward()
    plain = middle.detach().requires_grad_()
    again = loss_of(reference([first, plain], query, **RAW), 1) + plain.square().sum()
    (expected,) = torch.autograd.grad(again, [plain])
    same([found, middle.grad, x.grad], [expected, expected, 2 * expected])  # type: ignore


def test_branches_share_a_beginning(path: str) -> None:
    hiddens, query = leaves(4, 1, 3, 4), leaves(1, 4)[0]
    stem = history_of(hiddens[:2], capacity=4)
    left, right = (append(stem, x, capacity=4) for x in hiddens[2:])
    found = [y for h in (left, right, stem) for y in depth_attention(h, query, **PLAN)]
    lists = hiddens[:3], [*hiddens[:2], hiddens[3]], hiddens[:2]
    expected = [y for h in lists for y in reference(h, query, **PLAN)]
    wanted = [*hiddens, query]
    same(grads_of(loss_of(found, 1), wanted), grads_of(loss_of(expected, 1), wanted))


def test_another_eps_is_another_scale(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    history = history_of(hiddens)
    for eps in (1e-3, 2.0, 1e-3):
        plan = {**PLAN, "eps": eps}
        same(depth_attention(history, query, **plan), reference(hiddens, query, **plan))


def test_a_history_that_was_changed_is_read_as_it_is(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    history = history_of(hiddens[:2])
    depth_attention(history, query, **PLAN)
    history[0] = hiddens[2]
    lists = [hiddens[2], hiddens[1]]
    found, expected = depth_attention(history, query, **PLAN), reference(lists, query, **PLAN)
    same(found, expected)
    same(grads_of(loss_of(found, 1), hiddens), grads_of(loss_of(expected, 1), hiddens))
    middle = hiddens[0] * 2
    history = history_of([middle, hiddens[1]])
    depth_attention(history, query, **PLAN)
    middle.mul_(3)
    lists = [hiddens[0] * 6, hiddens[1]]
    same(depth_attention(history, query, **PLAN), reference(lists, query, **PLAN))


def test_a_look_in_inference_mode_spoils_no_training(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    history = history_of(hiddens)
    with torch.inference_mode():
        depth_attention(history, query, **PLAN)
    found, expected = depth_attention(history, query, **PLAN), reference(hiddens, query, **PLAN)
    same(grads_of(loss_of(found, 1), hiddens), grads_of(loss_of(expected, 1), hiddens))


def test_checkpoint_of_a_region_that_holds_a_router(path: str) -> None:
    hiddens, queries = leaves(3, 2, 3, 4), leaves(2, 4)
    history = history_of(hiddens)

    def region(h: Any, q: Tensor) -> Any:
        return depth_attention(h, q, **PLAN)

    outputs = [
        *checkpoint(region, history, queries[0], use_reentrant=False),
        *depth_attention(history, queries[1], **PLAN),
    ]
    expected = [y for q in queries for y in reference(hiddens, q, **PLAN)]
    wanted = [*hiddens, *queries]
    same(grads_of(loss_of(outputs, 1), wanted), grads_of(loss_of(expected, 1), wanted))


def test_checkpoint_of_a_region_that_appends_too(path: str) -> None:
    hiddens, queries = leaves(3, 2, 3, 4), leaves(2, 4)

    def region(history: Any, x: Tensor, q: Tensor) -> Any:
        longer = append(history, x * 2, capacity=4)
        return depth_attention(longer, q, **PLAN)[0], longer

    history = history_of(hiddens[:2], capacity=4)
    y, longer = checkpoint(region, history, hiddens[2], queries[0], use_reentrant=False)
    lists = [*hiddens[:2], hiddens[2] * 2]
    expected = [reference(lists, queries[0], **PLAN)[0], *reference(lists, queries[1], **PLAN)]
    wanted = [*hiddens, *queries]
    found = loss_of([y, *depth_attention(longer, queries[1], **PLAN)], 1)
    same(grads_of(found, wanted), grads_of(loss_of(expected, 1), wanted))


def test_a_changed_hidden_is_noticed(path: str) -> None:
    x, query = torch.randn(1, 3, 4), leaves(1, 4)[0]
    middle = x.requires_grad_() * 2
    (y,) = depth_attention(append(None, middle), query, **RAW)
    middle.add_(1)
    with pytest.raises(RuntimeError, match=r"modified .*inplace"):
        y.sum().backward()


@pytest.mark.parametrize("form", ["list", "history"])
def test_a_second_derivative_is_refused(path: str, form: str) -> None:
    hiddens, query = leaves(2, 1, 3, 4), leaves(1, 4)[0]
    history = hiddens if form == "list" else history_of(hiddens)
    loss = depth_attention(history, query, **PLAN)[0].square().sum()

    def twice() -> None:
        (grad,) = torch.autograd.grad(loss, [hiddens[0]], create_graph=True)
        grad.sum().backward()

    with pytest.raises(RuntimeError, match="depth_attention"):
        twice()


@pytest.mark.parametrize("wanted", ["all", "query"])
def test_hiddens_are_freed_with_the_history(path: str, wanted: str) -> None:
    gc.collect()
    gc.disable()
    try:
        x, query = leaves(1, 1, 3, 4)[0], leaves(1, 4)[0]
        middle = x * 2
        seen = weakref.ref(middle)
        history = append(append(None, middle), middle * 3)
        (y,) = depth_attention(history, query, **RAW)
        torch.autograd.grad(y.sum(), [x, query] if wanted == "all" else [query])
        del middle, history, y
        assert seen() is None
        assert not any(type(each) is Debt for each in gc.get_objects())
    finally:
        gc.enable()
