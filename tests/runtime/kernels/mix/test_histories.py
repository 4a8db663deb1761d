"""What every reader of a history owes autograd: mixes, and attention over depth beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attending
import mixing
import pytest
import torch
from mixing import grads_of, leaves, same
from torch import Tensor

pytestmark = pytest.mark.usefixtures("in_double")

NETWORKS = {"mix": (mixing.network, (3, 5)), "depth_attention": (attending.network, (20,))}

Model = tuple[Callable[..., Tensor], list[Tensor], list[Tensor]]


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Model:
    """A network of histories or, with tracked=False, of lists; its hiddens and its parameters."""
    torch.manual_seed(0)
    network, shape = NETWORKS[request.param]
    hiddens, parameters = leaves(6, 2, 5, 12), leaves(5, *shape)
    return partial(network, hiddens, parameters), hiddens, parameters


def test_a_deep_history_has_the_gradients_of_a_list(path: str, model: Model) -> None:
    network, hiddens, parameters = model
    inputs = [*hiddens, *parameters]
    expected = grads_of(network(tracked=False), inputs)
    same(grads_of(network(tracked=True), inputs), expected)


def test_gradients_of_a_subset_leave_nothing_behind(path: str, model: Model) -> None:
    network, hiddens, parameters = model
    inputs = [*hiddens, *parameters]
    expected = grads_of(network(tracked=False), inputs)
    loss = network(tracked=True)
    for i in (6, 0, 8, 3, 10):  # parameters alone never come to an Append
        same(grads_of(loss, inputs[i : i + 1], retain_graph=True), expected[i : i + 1])
    same(grads_of(loss, inputs), expected)


def test_two_backwards_add_up(path: str, model: Model) -> None:
    network, hiddens, parameters = model
    inputs = [*hiddens, *parameters]
    expected = grads_of(network(tracked=False), inputs)
    loss = network(tracked=True)
    loss.backward(retain_graph=True)
    loss.backward()
    same([x.grad for x in inputs], [2 * each for each in expected])  # type: ignore


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(path: str, mode: Any, model: Model) -> None:
    network, *_ = model
    expected = network(tracked=False)
    with mode():
        found = network(tracked=True)
    torch.testing.assert_close(found, expected.detach())


def test_saved_tensor_hooks_see_what_is_saved(path: str, model: Model) -> None:
    network, hiddens, _ = model
    expected = grads_of(network(tracked=False), hiddens)
    packed = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = network(tracked=True)
    assert len(packed) >= sum(range(2, 7))  # five readers, with their weights or queries
    same(grads_of(loss, hiddens), expected)
