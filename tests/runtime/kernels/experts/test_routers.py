"""Gates and statistics of routers in C, against the ops that define them: float64 decides."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from comparing import check, draw
from pairs import pairs
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from multiway.compiler.graph.registry import registry
from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.experts import routers_compiled
from multiway.runtime.kernels.experts.routers import router_statistics, top_k_gates

pytestmark = pytest.mark.skipif(
    native.library("routers") is None, reason=f"no C kernel: {native.refused('routers')}"
)
SCORES = routers_compiled.SCORES
SHAPES = [(2, 5, 4), (70, 3), (8,), (0, 4), (3, 1), (2, 3, 160)]


def attributes(**given: Any) -> dict[str, Any]:
    return registry()["top_k_gates"].full_attrs(given)


def both_gates(inputs: list[Tensor], **attrs: Any) -> None:
    whole = attributes(**attrs)
    reference = partial(registry()["top_k_gates"].reference, **whole)
    check(partial(top_k_gates, **whole), reference, inputs, fixed=range(1, len(inputs)))


@pairs(dtype=[torch.float64, torch.float32], score=SCORES, normalise=[False, True], shape=SHAPES)
def test_gates(shape: tuple[int, ...], normalise: bool, score: str, dtype: torch.dtype) -> None:
    for k, biased in itertools.product({1, 2, shape[-1]}, (False, True)):
        if k <= shape[-1]:
            inputs = [3 * draw(*shape, dtype=dtype)]
            inputs += [draw(shape[-1], dtype=dtype, seed=1)] if biased else []
            both_gates(inputs, k=k, score=score, normalise=normalise, scale=2.5)


def test_gates_of_logits_far_apart() -> None:
    """Scores of chosen experts are 0 here: they have no gate and no gradient."""
    for normalise in (False, True):
        both_gates([1e4 * draw(5, 6)], k=3, normalise=normalise)
        few = torch.tensor([[-800, 1, -900, 0.5, -1000], [-800, -900, -950, 2, -750]]).double()
        both_gates([few], k=3, score="sigmoid", normalise=normalise)


def test_of_equal_scores_the_first_are_chosen() -> None:
    gates = top_k_gates(torch.zeros(3, 5), **attributes(k=2, normalise=True))
    assert torch.equal(gates, torch.tensor([0.5, 0.5, 0, 0, 0]).expand(3, 5))


@pytest.mark.parametrize("score", SCORES)
def test_what_is_no_number_stays_in_its_row(score: str) -> None:
    logits = draw(4, 3, dtype=torch.float32)
    logits[1, 2], logits[2, 0], logits[3] = math.nan, math.inf, -math.inf
    attrs = attributes(k=2, score=score)
    gates = top_k_gates(logits, **attrs)
    want = registry()["top_k_gates"].reference(logits, **attrs)
    assert torch.equal(gates[0], want[0])
    assert gates[1].isnan().any() and want[1].isnan().any()
    assert torch.equal(gates.isnan().any(1), want.isnan().any(1))
    assert (gates.isnan() | (gates != 0)).sum(1).le(3).all()


def counted(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Gates, logits, wanted and padding of [B, T, X]."""
    logits = 3 * draw(*shape, dtype=dtype)
    wanted = logits.softmax(-1) * (draw(*shape, seed=1) > 0)
    gates = wanted * (draw(*shape, seed=2) > -0.5)
    return [gates, logits, wanted, draw(*shape[:2], seed=3) > 0.7]


@pairs(
    dtype=[torch.float64, torch.float32],
    score=SCORES,
    shape=[(2, 5, 4), (3, 1, 1), (0, 3, 4), (2, 0, 4), (4, 300, 7)],
    given=[2, 3, 4],
)
def test_statistics(given: int, shape: tuple[int, ...], score: str, dtype: torch.dtype) -> None:
    check(
        partial(router_statistics, score=score),
        partial(registry()["router_statistics"].reference, score=score),
        counted(shape, dtype)[:given],
        fixed=(0, 2),
    )


def test_statistics_without_wanted_but_with_padding() -> None:
    gates, logits, _, padding = counted((2, 5, 4), torch.float64)
    reference = registry()["router_statistics"].reference
    check(
        lambda x: router_statistics(gates, x, padding=padding, score="softmax"),
        lambda x: reference(gates, x, padding=padding, score="softmax"),
        [logits],
    )
    everything = torch.ones_like(padding)
    for found in router_statistics(gates, logits, padding=everything, score="sigmoid"):
        assert not found.any()


@pytest.mark.parametrize("port", [1, 2, 3])
@pytest.mark.parametrize("score", SCORES)
def test_statistics_of_which_one_is_read(score: str, port: int) -> None:
    gates, logits, *_ = counted((2, 5, 4), torch.float64)
    reference = registry()["router_statistics"].reference
    check(
        lambda x: router_statistics(gates, x, score=score)[port],
        lambda x: reference(gates, x, score=score)[port],
        [logits],
    )


def test_results_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    gates, logits, *_ = counted((5, 2000, 16), torch.float32)
    attrs = attributes(k=2, normalise=True)
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaf = logits.clone().requires_grad_()
            found = [top_k_gates(leaf, **attrs), *router_statistics(gates, leaf, score="softmax")]
            total = (found[0] * logits).sum() + found[2].sin().sum() + found[4].sum()
            results.append([*found, *torch.autograd.grad(total, leaf)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_views_and_situations_of_autograd() -> None:
    attrs = attributes(k=2, normalise=True)
    both_gates([draw(4, 6).t()], k=2)
    leaf = draw(3, 5, 4).requires_grad_()
    seed = torch.ones(()).double().expand(3, 5, 4)  # not contiguous
    y = top_k_gates(leaf, **attrs)
    (first,) = torch.autograd.grad(y * leaf.detach(), leaf, seed, retain_graph=True)
    again = checkpoint(lambda x: top_k_gates(x, **attrs), leaf, use_reentrant=False)
    (second,) = torch.autograd.grad(again * leaf.detach(), leaf, seed)
    assert torch.equal(first, second) and first.any()
    with torch.inference_mode():
        assert torch.equal(top_k_gates(leaf, **attrs), y)
    (slope,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    _, probability, z, *rest = router_statistics(y.detach(), leaf, score="softmax")
    assert not any(each.requires_grad for each in (rest[-1], rest[-2]))
    (slope,) = torch.autograd.grad(probability.square().sum() + z.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_what_they_do_not_take() -> None:
    gates, statistics = (kernels()[name].takes for name in ("top_k_gates", "router_statistics"))
    assert gates is not None and statistics is not None
    x = torch.zeros(2, 3, 4)
    plain = attributes(k=1)
    assert gates(x, **plain) is None and statistics(x, x, score="softmax") is None
    assert gates(x.bfloat16(), **plain) == "types are not all float32 or float64: torch.bfloat16"
    assert str(gates(x, torch.zeros(4).double(), **plain)).startswith("types are not all")
    assert gates(x.to("meta"), **plain) == "it is on meta"
    assert statistics(x, score="softmax") == "there are no logits"
    with native.disabled():
        assert gates(x, **plain) == "C kernels are switched off"
    with FlopCounterMode(display=False):
        assert gates(x, **plain) == "what follows the operators is to see torch's"


def test_what_they_do_not_fit() -> None:
    gates, statistics = (kernels()[name].fits for name in ("top_k_gates", "router_statistics"))
    plain = attributes(k=1)
    assert gates(plain, {"X": 1024}) is None
    assert gates(plain, {"X": 1025}) == "there are 1025 experts"
    assert gates({**plain, "groups": 2}, {"X": 4}) == "groups of experts"
    assert gates({**plain, "score": "tanh"}, {"X": 4}) == "scores by tanh"
    assert statistics({"score": "softmax"}, {"X": 4}) is None
    assert statistics({"score": "softmax"}, {"X": 1025}) == "there are 1025 experts"


@pytest.mark.parametrize("groups", [1, 3])
def test_ties_are_broken_alike_by_the_op(groups: int) -> None:
    """Sigmoids of large logits are all 1: the op's choice is the first, as the kernel's."""
    logits = torch.tensor([[40.0, 50, 1, 60, 45, 70], [0, 0, 0, 0, 0, 0]]).double()
    attrs = attributes(k=2, score="sigmoid", groups=groups, kept=2)
    gates = registry()["top_k_gates"].reference(logits, **attrs)
    want = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]]).double()
    torch.testing.assert_close(gates, want)
    if groups == 1:
        torch.testing.assert_close(top_k_gates(logits, **attrs), want)
