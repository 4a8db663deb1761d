"""Attention over depth against its definition, by every way it can run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attending import PLAN, RAW, Case, draw, normalised, reference
from mixing import double, grads_of, history_of, leaves, loss_of, same
from rounding import assert_no_farther
from torch import Tensor

from multiway.runtime.kernels import kernels
from multiway.runtime.kernels.depth_attention import depth_attention
from multiway.runtime.kernels.depth_attention.op import depth_attention_op
from multiway.runtime.kernels.mix import append, fused_mix
from multiway.runtime.kernels.native import calls

pytestmark = pytest.mark.usefixtures("in_double")


@pytest.mark.parametrize("form", ["list", "history"])
@pytest.mark.parametrize("block", range(8))
def test_it_is_what_its_definition_says(path: str, form: str, block: int) -> None:
    for seed in range(block * 12, block * 12 + 12):
        case = draw(seed)
        history = history_of(case.history) if form == "history" else case.history
        expected, found = case.run(reference), case.run(depth_attention, history)
        same(found, expected)
        wanted = case.leaves
        same(grads_of(loss_of(found, seed), wanted), grads_of(loss_of(expected, seed), wanted))
        with torch.no_grad():
            same(case.run(depth_attention, history), expected)


def test_the_gradients_are_those_of_gradcheck(path: str) -> None:
    for groups in (1, 3):
        hiddens, query, gain = leaves(6, 1, 3, 6), leaves(1, 6)[0], leaves(1, 6)[0]

        def run(query: Tensor, gain: Tensor, *hiddens: Tensor, groups: int = groups) -> Any:
            plan = {**PLAN, "groups": groups}
            return depth_attention(history_of(hiddens), query, None, [gain], **plan)

        assert torch.autograd.gradcheck(run, (query, gain, *hiddens))


def test_one_source_has_weight_one_and_its_query_no_gradient(path: str) -> None:
    for dtype in (double, torch.float32):
        x = torch.randn(2, 9, 48, dtype=dtype).requires_grad_()
        query = torch.randn(48, dtype=dtype).requires_grad_()
        (y,) = depth_attention(history_of([x]), query, **RAW)
        torch.testing.assert_close(y, x)
        y.square().sum().backward()
        torch.testing.assert_close(x.grad, 2 * x.detach())
        assert not query.grad.any()  # type: ignore[union-attr]


def test_outputs_share_no_memory(path: str) -> None:
    history = [torch.randn(1, 3, 4) for _ in range(2)]
    outputs = depth_attention(history, torch.randn(4), **{**PLAN, "normed": 2})
    before = [y.clone() for y in outputs]
    outputs[0].zero_()
    same(outputs[1:], before[1:])


def test_large_scores_neither_overflow_nor_vanish(path: str) -> None:
    for dtype, size in ((torch.float32, 1e4), (double, 1e6)):
        history = [torch.randn(1, 9, 64, dtype=dtype) for _ in range(7)]
        query = torch.randn(64, dtype=dtype) * size
        found = depth_attention(history, query, **RAW)[0]
        assert found.isfinite().all()
        expected = reference(history, query, **RAW)[0]
        assert ((found - expected).abs().amax(-1) < 1e-2).float().mean() > 0.8  # no near ties


def test_infinities_and_nan_pass(path: str) -> None:
    history = [torch.ones(1, 9, 20) for _ in range(6)]
    history[4][0, 1, 19] = torch.nan
    history[1][0, 0, 3] = torch.inf
    (y,) = depth_attention(history, torch.ones(20), **{**RAW, "groups": 1})
    assert y[0, :2].isnan().any(-1).all() and y[0, 2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 4])
def test_no_farther_from_float64_than_the_definition_is(
    path: str, dtype: torch.dtype, groups: int
) -> None:
    torch.manual_seed(0)
    for norm in ("layer_norm", "rms_norm"):
        exact = (
            Case(
                history=leaves(9, 2, 150, 96),
                query=leaves(1, 96)[0],
                weight=leaves(1, 96)[0],
                gains=leaves(1, 96),
                biases=leaves(1, 96),
                plan={**PLAN, "norm": norm, "groups": groups},
            )
            .to(dtype)
            .to(double)
        )
        results = []
        for case, function in [(exact, reference)] + [
            (exact.to(dtype), f) for f in (reference, depth_attention)
        ]:
            history = history_of(case.history) if function is depth_attention else case.history
            outputs = case.run(function, history)
            results.append([*outputs, *grads_of(loss_of(outputs, 1), case.leaves)])
        for truth, eager, ours in zip(*results, strict=True):
            assert_no_farther(ours, eager, truth, terms=2 * 150)


def test_threads_change_no_more_than_the_order_of_sums(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ELEMENTS_PER_THREAD", 1)
    case = Case(
        history=leaves(6, 2, 101, 64),
        query=leaves(1, 64)[0],
        gains=leaves(1, 64),
        plan=PLAN,
    )
    results = []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        outputs = case.run(depth_attention, history_of(case.history))
        results.append([*outputs, *grads_of(loss_of(outputs, 1), case.leaves)])
    torch.set_num_threads(1)
    same(results[1], results[0])
    if path == "c":
        assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


def test_the_operators_are_what_torch_asks_of_them(path: str) -> None:
    hiddens, query, gains = leaves(3, 2, 3, 4), leaves(1, 4)[0], leaves(1, 4)
    settings = 2, 1e-3, "rms_norm", 1e-2, 1, True
    torch.library.opcheck(depth_attention_op, (hiddens, query, gains, [], *settings))
    torch.library.opcheck(depth_attention_op, (hiddens, query, [], [], 1, 1e-3, "", 0.0, 0, True))


def test_a_compiled_program_is_the_eager_one(path: str) -> None:
    hiddens, query, weight, gains = leaves(3, 2, 3, 4), *leaves(2, 4), leaves(1, 4)

    def program(query: Tensor, weight: Tensor, gain: Tensor, *hiddens: Tensor) -> Any:
        history = None
        for x in hiddens:
            history = append(history, x, capacity=3)
        a, b = depth_attention(history, query, weight, [gain], **PLAN)
        return a * 2, b

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    wanted = [query, weight, *gains, *hiddens]
    found, expected = compiled(*wanted), reference(hiddens, query, weight, gains, **PLAN)
    same(found, [2 * expected[0], expected[1]])
    same(
        grads_of(loss_of(found, 1), wanted),
        grads_of(loss_of([2 * expected[0], expected[1]], 1), wanted),
    )


def test_autocast_changes_nothing(path: str) -> None:
    hiddens = [x.detach().float().requires_grad_() for x in leaves(5, 2, 3, 8)]
    query = torch.randn(8, dtype=torch.float32).requires_grad_()
    results = []
    for on in (False, True):
        with torch.autocast("cpu", enabled=on):
            outputs = depth_attention(history_of(hiddens), query, **PLAN)
        results.append([*outputs, *grads_of(loss_of(outputs, 1), [*hiddens, query])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_histories_are_shared_with_fused_mixes(path: str) -> None:
    hiddens, query, weights = leaves(3, 2, 3, 4), leaves(1, 4)[0], leaves(1, 2, 3, 1, 3)[0]
    plan = {"norm": "rms_norm", "eps": 1e-2, "normed": [0], "raw": []}

    def run(router: Any, history: Any, mixed: Any) -> Any:
        return [
            *router(history, query, **PLAN),
            mixed(history),
            *router(history, 2 * query, **PLAN),
        ]

    def by_hand(history: Any) -> Tensor:
        y = sum(weights[..., 0, i, None] * x for i, x in enumerate(history))
        return normalised(y, "rms_norm", 1e-2)  # type: ignore[arg-type]

    found = run(depth_attention, history_of(hiddens), lambda h: fused_mix(h, weights, **plan)[0])
    expected = run(reference, hiddens, by_hand)
    same(found, expected)
    wanted = [*hiddens, query, weights]
    same(grads_of(loss_of(found, 1), wanted), grads_of(loss_of(expected, 1), wanted))


def test_what_it_does_not_fit() -> None:
    fits = kernels()["depth_attention"].fits
    assert fits(PLAN, {"D": 4}) is None
    assert fits({**PLAN, "norm": "other"}, {}) == "other: no kernel for this norm"
    assert fits({**PLAN, "norm": "", "normed": 1}, {}) == ": no kernel for this norm"
    assert fits(PLAN, {"D": 0}) == "rows without elements"


def test_what_it_does_not_take() -> None:
    takes = kernels()["depth_attention"].takes
    hiddens, query = [torch.randn(2, 3, 4) for _ in range(3)], torch.randn(4)
    assert takes is not None and takes(hiddens, query, **PLAN) is None
    for history, given, plan, reason in [
        ([], query, PLAN, "no sources"),
        (hiddens, query[:3], PLAN, "shapes that do not fit"),
        ([*hiddens, hiddens[0][:1]], query, PLAN, "shapes that do not fit"),
        (hiddens, query, {**PLAN, "groups": 3}, "shapes that do not fit"),
        (hiddens, query.float(), PLAN, "tensors of unlike types"),
        ([x.to("meta") for x in hiddens], query.to("meta"), PLAN, "meta: no kernel yet"),
    ]:
        found = takes(history, given, **plan)
        assert found is not None and found.startswith(reason)
