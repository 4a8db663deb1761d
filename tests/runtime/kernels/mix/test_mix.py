"""The depth mix against its definition (mixing.py), by every way it can run; float64 decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixing import (
    Case,
    arguments,
    double,
    draw,
    grads_of,
    history_of,
    leaves,
    loss_of,
    mix_reference,
    reference,
    same,
)
from pairs import pairs
from rounding import assert_no_farther
from torch import Tensor

from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.mix import append, fused_mix, mix
from multiway.runtime.kernels.mix.op import fused_mix_backward_op, fused_mix_op

pytestmark = pytest.mark.usefixtures("in_double")

needs_c = pytest.mark.skipif(
    native.library("mix") is None, reason=f"no C kernel: {native.refused('mix')}"
)


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["list", "history"])
@pytest.mark.parametrize("block", range(8))
def test_a_mix_is_what_its_definition_says(path: str, form: str, block: int) -> None:
    for seed in range(block * 12, block * 12 + 12):
        case = draw(seed)
        history = history_of(case.history) if form == "history" else case.history
        expected, found = case.run(reference), case.run(fused_mix, history)
        same(found, expected)
        inputs = case.leaves
        same(
            grads_of(loss_of(found, seed), inputs),
            grads_of(loss_of(expected, seed), inputs),
        )


def test_outputs_share_no_memory(path: str) -> None:
    for length in (1, 3):
        weights = torch.randn(1, length, 2, 2)
        history = [torch.randn(1, length, 4) for _ in range(2)]
        outputs = fused_mix(history, weights, norm="", eps=0.0, normed=[], raw=[0, 0, 1])
        before = [y.clone() for y in outputs]
        outputs[0].zero_()
        same(outputs[1:], before[1:])


def test_infinities_and_nan_pass(path: str) -> None:
    history = [torch.ones(1, 3, 20), torch.ones(1, 3, 20)]
    history[0][0, 0, 3], history[1][0, 1, 19] = torch.inf, torch.nan
    (y,) = mix(history, torch.ones(1, 2))
    assert y[0, 0, 3] == torch.inf and y[0, 1, 19].isnan()
    assert y.isfinite().sum() == y.numel() - 2
    (z,) = fused_mix(history, torch.ones(1, 2), norm="layer_norm", eps=1e-5, normed=[0], raw=[])
    assert z[0, :2].isnan().any(-1).all() and z[0, 2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_farther_from_float64_than_the_definition_is(path: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for norm in ("layer_norm", "rms_norm"):
        exact = (
            Case(
                history=leaves(7, 2, 300, 96),
                weights=leaves(1, 2, 300, 4, 7)[0],
                gains=leaves(3, 96),
                biases=leaves(3, 96),
                plan={"norm": norm, "eps": 1e-5, "normed": [0, 1, 2], "raw": [3]},
            )
            .to(dtype)
            .to(double)
        )
        results = []
        for case, function in [(exact, reference)] + [
            (exact.to(dtype), f) for f in (reference, fused_mix)
        ]:
            outputs = case.run(function)
            results.append([*outputs, *grads_of(loss_of(outputs, 1), case.leaves)])
        for truth, eager, ours in zip(*results, strict=True):
            assert_no_farther(ours, eager, truth, terms=2 * 300)


@needs_c
@pytest.mark.parametrize("form", ["list", "history"])
def test_bfloat16_is_float32_rounded_once(form: str) -> None:
    for seed in range(60):
        half = draw(seed).to(torch.bfloat16)
        history = history_of(half.history) if form == "history" else half.history
        exact = half.to(torch.float32).run(fused_mix)
        for learns in (True, False):
            with torch.set_grad_enabled(learns):
                for ours, rounded in zip(half.run(fused_mix, history), exact, strict=True):
                    assert torch.equal(ours, rounded.to(torch.bfloat16))
        grads = []
        for case in (half, half.to(torch.float32)):
            inputs = history_of(case.history) if form == "history" else case.history
            outputs = case.run(fused_mix, inputs)
            seeds = [
                each.detach().bfloat16().to(y.dtype) for each, y in zip(exact, outputs, strict=True)
            ]
            grads.append(torch.autograd.grad(outputs, case.leaves, seeds, allow_unused=True))
        for ours, wide in zip(*grads, strict=True):
            assert (ours is None) == (wide is None)
            if ours is not None:  # more than four ways are added, and rounded, in two sweeps
                few = 2**-8 * float(wide.abs().max()) if wide.numel() else 0.0
                torch.testing.assert_close(ours.float(), wide, rtol=2**-8, atol=few)
    history = [torch.ones(1, 3, 20).bfloat16(), torch.ones(1, 3, 20).bfloat16()]
    history[0][0, 0, 3], history[1][0, 1, 19] = torch.inf, torch.nan
    (y,) = mix(history, torch.ones(1, 2).bfloat16())
    assert y[0, 0, 3] == torch.inf and y[0, 1, 19].isnan()
    assert y.isfinite().sum() == y.numel() - 2


def test_threads_change_no_more_than_the_order_of_sums(path: str) -> None:
    case = draw(3)
    case = Case(
        history=leaves(6, 2, 200, 64),
        weights=leaves(1, 4, 6)[0],
        gains=leaves(2, 64),
        plan={"norm": "rms_norm", "eps": 1e-6, "normed": [0, 3], "raw": [1]},
    )
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        outputs = case.run(fused_mix)
        results.append([*outputs, *grads_of(loss_of(outputs, 1), case.leaves)])
    torch.set_num_threads(1)
    same(results[1], results[0])
    if path == "c":
        assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


def test_the_other_ops_of_the_folder(path: str) -> None:
    history = [torch.randn(2, 3, 4) for _ in range(3)]
    weights = torch.randn(2, 3, 2, 3)
    expected = reference(history, weights, norm="", eps=0.0, normed=[], raw=[0, 1])
    same(mix(history, weights), expected)
    assert append(history, expected[0])[-1] is expected[0] and len(history) == 3
    assert append(x=expected[0]) == [expected[0]]


# --- operators -------------------------------------------------------------------------------


@pairs(
    indirect=["path"],
    path=["c", "plain"],
    seed=range(3),
    norm=["layer_norm", "rms_norm", ""],
)
def test_the_operators_keep_torchs_rules(path: str, seed: int, norm: str) -> None:
    given = arguments(seed, norm)
    torch.library.opcheck(fused_mix_op, given)
    with torch.no_grad():
        grads = [x if i else None for i, x in enumerate(fused_mix_op(*given))]
    sources = [True, False, True, True]
    given = tuple(
        [x.detach() for x in v] if isinstance(v, list) and v and isinstance(v[0], Tensor) else v
        for v in given
    )
    given = (given[0], given[1].detach(), *given[2:])
    torch.library.opcheck(fused_mix_backward_op, (grads, *given, sources, bool(seed % 2)))


@pytest.mark.slow
def test_it_compiles_in_one_graph(path: str) -> None:
    torch.manual_seed(0)
    hiddens, weights, gains = leaves(2, 2, 6, 8), leaves(1, 2, 6, 2, 3)[0], leaves(1, 8)

    traces = kernels()["fused_mix"].traces
    assert traces is not None

    def function(hiddens: list[Tensor], weights: Tensor, gains: list[Tensor]) -> Any:
        history: Any = None
        for x in (*hiddens, hiddens[0] + hiddens[1]):
            history = append(history, x, capacity=3)
        plan = {"norm": "rms_norm", "eps": 1e-6, "normed": [0], "raw": [1]}
        assert traces(history, weights, gains, **plan) is None
        return fused_mix(history, weights, gains, **plan)

    whole = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs = [*hiddens, weights, *gains]
    expected = grads_of(loss_of(function(hiddens, weights, gains), 1), inputs)
    same(grads_of(loss_of(whole(hiddens, weights, gains), 1), inputs), expected)


@pytest.mark.slow
def test_a_compiled_region_takes_a_history() -> None:
    hiddens, weights = leaves(3, 2, 3, 4), leaves(2, 2, 3)
    whole = torch.compile(lambda h, w: mix(h, w), fullgraph=True, backend="aot_eager")
    history = history_of(hiddens)
    found = [*whole(history, weights[0]), *mix(history, weights[1])]
    expected = [y for w in weights for y in mix_reference(hiddens, w)]
    inputs = [*hiddens, *weights]
    same(grads_of(loss_of(found, 1), inputs), grads_of(loss_of(expected, 1), inputs))


def test_it_exports() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
            history = append(append(None, x, capacity=2), x + 1, capacity=2)
            return mix(history, weights)

    given = torch.randn(1, 3, 4), torch.randn(1, 3, 2, 2)
    program = torch.export.export(Module(), given)
    assert "multiway.fused_mix" in str(program.graph)
    same(program.module()(*given), Module()(*given))


# --- what is refused -------------------------------------------------------------------------


def test_what_the_kernels_do_not_fit() -> None:
    plan: dict[str, Any] = {"norm": "rms_norm", "eps": 0.0, "normed": [0], "raw": []}
    fits = kernels()["fused_mix"].fits
    assert fits(plan, {"D": 4, "C": 2, "L": 2}) is None
    assert fits(plan, {}) is None  # of widths that are no numbers nothing is said
    assert fits({**plan, "norm": "other"}, {}) == "other: no kernel for this norm"
    assert fits({**plan, "raw": [2]}, {"C": 2}) == "ways 0 to 2 of 2"
    assert fits(plan, {"D": 0}) == "rows without elements"
    assert kernels()["mix"].fits({}, {"D": 4}) is None
    assert kernels()["mix"].fits({}, {"D": 0}) == "rows without elements"


def test_what_the_kernels_do_not_take() -> None:
    history = [torch.randn(1, 3, 4) for _ in range(2)]
    weights = torch.randn(2, 2)
    takes, append, fused = (kernels()[name].takes for name in ("mix", "append", "fused_mix"))
    assert takes is not None and append is not None and fused is not None
    meta = [x.to("meta") for x in history]
    assert takes(history, weights) is None
    assert takes(meta, weights.to("meta")) == "meta: no kernel yet"
    assert takes([], weights) == "no sources"
    assert takes(history, torch.randn(2, 3)) == "shapes that do not fit"
    assert takes(history, torch.randn(1, 2, 2, 2)) == "shapes that do not fit"
    assert takes([history[0], history[1][:, :2]], weights) == "shapes that do not fit"
    assert "unlike types" in str(takes(history, weights.float()))
    assert takes([x.int() for x in history], weights.int()) == "int32: no kernel for this type"
    assert append(None, meta[0]) == "meta: no kernel yet"
    plan: dict[str, Any] = {"norm": "rms_norm", "eps": 0.0, "normed": [0], "raw": []}
    assert fused(history, weights, **plan) is None
    assert fused(history, weights, [torch.ones(5)], **plan) == "shapes that do not fit"
    assert fused(history, weights, [torch.ones(4)] * 2, **plan) == "shapes that do not fit"


@needs_c
def test_what_fits_not_never_reaches_c() -> None:
    history = [torch.randn(1, 3, 4), torch.randn(1, 2, 4)]
    for weights in (torch.randn(1, 2), torch.randn(1, 3), torch.randn(1, 2).float()):
        with pytest.raises(AssertionError), torch.no_grad():
            mix(history, weights)
