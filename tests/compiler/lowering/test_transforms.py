"""torch.func and forward mode on fused models: what they give on the reference.

Kernels have no rules for them and leave them to torch's operators; a program made within such a
call, and weights folded for inference, must see the parameters of that call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from fused import pair, sizes_for
from members import in_turn, members
from op_samples import OPS, floats, replaced, values_of
from strategies import random_inputs
from torch import Tensor
from torch.autograd import forward_ad

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.lowering.dispatch import _fast, fast
from multiway.runtime.kernels import kernels
from multiway.runtime.model import Model

State = dict[str, Tensor]


def loss(model: Model, given: Mapping[str, Any]) -> Callable[[State], Tensor]:
    """The loss as a function of the parameters."""

    def function(state: State) -> Tensor:
        return torch.func.functional_call(Loss(model), state, kwargs=dict(given))

    return function


class Loss(torch.nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, **given: Any) -> Any:
        torch.manual_seed(0)  # of the noise of routers
        return self.model.loss(**given)[0]


def slope(function: Callable[[State], Tensor], state: State) -> State:
    return torch.func.grad(function)(state)


def tangent(function: Callable[[State], Tensor], state: State) -> Tensor:
    return torch.func.jvp(function, (state,), (directions(state),))[1]


def curvature(function: Callable[[State], Tensor], state: State) -> State:
    """The Hessian times a direction, forward over reverse."""
    return torch.func.jvp(torch.func.grad(function), (state,), (directions(state),))[1]


def slopes(function: Callable[[State], Tensor], state: State) -> State:
    """A gradient for each of two factors of all parameters, by vmap."""

    def scaled(factor: Tensor) -> State:
        return torch.func.grad(function)({name: x * factor for name, x in state.items()})

    return torch.func.vmap(scaled, randomness="same")(torch.tensor([1.0, 1.1]).double())


def directions(state: State) -> State:
    return {name: x.cos() for name, x in state.items()}


TRANSFORMED = [slope, tangent, curvature, slopes]


def check(
    spec: mw.Spec, given: Mapping[str, Any], transformed: Callable[..., Any], **options: Any
) -> None:
    want, found = (
        transformed(
            loss(model, given), {f"model.{k}": p.detach() for k, p in model.named_parameters()}
        )
        for model in pair(spec, **options)
    )
    torch.testing.assert_close(found, want, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@in_turn(members(apart=False), transformed=TRANSFORMED)
def test_a_fused_model_under_transforms_is_the_reference(
    name: str, head: str, transformed: Callable[..., Any]
) -> None:
    spec = mw.load(name).for_head(head)
    if "loss" not in program_names(spec):
        pytest.skip("nothing to train")
    graph = mw.build(spec, program="loss")
    given = random_inputs(graph, sizes_for(graph))
    check(spec, given, transformed)


@pytest.mark.parametrize("transformed", TRANSFORMED)
def test_blocks_that_are_made_again_are_the_reference(transformed: Callable[..., Any]) -> None:
    spec, tokens = mw.load("mudd-pythia-test"), torch.arange(6)[None]
    given = {"tokens": tokens, "labels": tokens}
    check(spec, given, transformed, memory_budget=0, sizes={"B": 1, "T": 6})


@pytest.mark.parametrize("name", kernels())
def test_no_kernel_drops_a_tangent(name: str) -> None:
    op, moved = OPS[name], False
    for sample in op.samples:
        tangents = []
        for function in (op.reference, fast(name)):
            values = values_of(op, sample)
            with forward_ad.dual_level():
                leaves = floats(values)
                duals = [forward_ad.make_dual(x.detach(), x.detach().cos()) for x in leaves]
                found = function(**replaced(values, duals), **op.full_attrs(sample.attrs))
                many = [found] if isinstance(found, Tensor) else found
                tangents.append([forward_ad.unpack_dual(each).tangent for each in many])
        torch.testing.assert_close(*tangents)
        moved |= any(each is not None and bool(each.any()) for each in tangents[0])
    assert moved


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("within", ["grad", "jvp", "vmap", "a level of forward mode"])
@pytest.mark.parametrize("name", kernels())
def test_no_kernel_runs_whatever_the_size(
    name: str, within: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples of ops are small, which many kernels refuse: here the kernel takes everything."""
    op, ran = OPS[name], []

    def run(*_: Any, **__: Any) -> None:
        ran.append(name)

    eager = dataclasses.replace(kernels()[name], run=run, takes=None)
    monkeypatch.setitem(kernels(), name, eager)  # type: ignore[arg-type]
    function = _fast.__wrapped__(name, ())
    values, attrs = values_of(op, op.samples[0]), op.full_attrs(op.samples[0].attrs)
    function(**values, **attrs)
    assert ran == [name]  # outside

    def follow(x: Tensor) -> Tensor:
        assert function(**values, **attrs) is not None
        return x.sin()

    x = torch.tensor(1.0)
    if within == "grad":
        torch.func.grad(follow)(x)
    elif within == "jvp":
        torch.func.jvp(follow, (x,), (x,))
    elif within == "vmap":
        torch.func.vmap(follow)(x[None])
    else:
        with forward_ad.dual_level():
            follow(x)
    assert ran == [name]


def test_folded_weights_are_those_of_the_call() -> None:
    reference, model = pair(mw.load("pythia-test"), mode="inference")
    tokens = {"tokens": torch.arange(6)[None]}
    before = model(**tokens)
    for step in range(3):  # tensors that may lie where those of the last call lay
        state = {name: p + 0.1 * (step + 1) for name, p in model.named_parameters()}
        want, found = (
            torch.func.functional_call(each, state, kwargs=tokens) for each in (reference, model)
        )
        torch.testing.assert_close(found, want)
        del state
    torch.testing.assert_close(model(**tokens), before, rtol=0, atol=0)


def test_folded_weights_pass_gradients_on() -> None:
    tokens = {"tokens": torch.arange(6)[None]}
    found, models = [], pair(mw.load("pythia-test"), mode="inference")
    for model in models:
        state = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
        torch.func.functional_call(model, state, kwargs=tokens).square().sum().backward()
        found.append([p.grad for p in state.values()])
    assert not models[1](**tokens).requires_grad
    torch.testing.assert_close(*found)


def test_folded_weights_follow_what_replaces_a_parameter() -> None:
    reference, model = pair(mw.load("pythia-test"), mode="inference")
    tokens = {"tokens": torch.arange(6)[None]}
    model(**tokens)
    with torch.inference_mode():
        state = {name: p + 0.1 for name, p in model.named_parameters()}
        model.load_state_dict(state, assign=True)
        want = torch.func.functional_call(reference, state, kwargs=tokens)
        torch.testing.assert_close(model(**tokens), want)


@pytest.mark.parametrize("how", ["assigned", "converted"])
def test_folded_weights_follow_writes_that_nobody_counts(how: str) -> None:
    """Parameters made in inference mode have no version that a write would raise."""
    reference, model = pair(mw.load("pythia-test"), mode="inference")
    tokens = {"tokens": torch.arange(6)[None]}
    for each in (reference, model):
        with torch.inference_mode():
            if how == "assigned":
                state = {name: p.clone() for name, p in each.named_parameters()}
                each.load_state_dict(state, assign=True)
            else:
                each.float().double()
    assert all(p.is_inference() for p in model.parameters())
    with torch.inference_mode():
        model(**tokens)
        for each in (reference, model):
            for parameter in each.parameters():
                parameter.mul_(1.5)
        torch.testing.assert_close(model(**tokens), reference(**tokens))


def test_a_model_made_in_inference_mode_is_an_ordinary_one() -> None:
    with torch.inference_mode():
        model = mw.compile("pythia-test")
    assert not any(p.is_inference() for p in model.parameters())
    tokens = torch.arange(4)[None]
    model.loss(tokens=tokens, labels=tokens)[0].backward()
    assert all(p.grad is not None for p in model.parameters())
