"""Attention over depth against its definition, by every way it can run.

The definition is written out here once more, in the fewest words; float64 decides.
"""

from __future__ import annotations

import gc
import random
import statistics
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.mix import History, append, fused_mix, mix
from multiway.runtime.kernels.native import calls
from multiway.runtime.kernels.routed import routed_mix
from multiway.runtime.kernels.routed.op import routed_mix_op
from multiway.runtime.kernels.routed.plan import Debt

double = torch.float64
needs_c = pytest.mark.skipif(
    native.library("routed") is None, reason=f"no C kernel: {native.refused('routed')}"
)


@pytest.fixture(params=[pytest.param("c", marks=needs_c), "plain"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with the C kernel and without."""
    if request.param == "c":
        yield "c"
        return
    with native.disabled():
        yield "plain"


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    torch.set_default_dtype(double)
    yield
    torch.set_default_dtype(torch.float32)


def normalised(x: Tensor, norm: str, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm == "layer_norm":
        wide = wide - wide.mean(-1, keepdim=True)
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()


def reference(
    history: Sequence[Tensor],
    query: Tensor,
    weight: Tensor | None = None,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    groups: int,
    eps: float,
    norm: str,
    norm_eps: float,
    normed: int,
    raw: int,
) -> tuple[Tensor, ...]:
    """What attention over depth means."""
    whole = (
        query
        if weight is None
        else query.to(torch.promote_types(query.dtype, torch.float32)) * weight
    )
    keys = torch.stack([normalised(x, "rms_norm", eps) * whole for x in history])
    scores = keys.unflatten(-1, (groups, -1)).sum(-1)
    weights = scores.softmax(0).to(history[0].dtype).unsqueeze(-1)
    parts = torch.stack(list(history)).unflatten(-1, (groups, -1))
    y = (weights * parts).sum(0).flatten(-2)
    made = []
    for i in range(normed):
        z = normalised(y, norm, norm_eps).to(y.dtype)
        z = z * gains[i] if gains else z
        made.append(z + biases[i] if biases else z)
    return (*made, *[y] * raw)


@dataclass(kw_only=True)
class Case:
    """Arguments of one call, all leaves."""

    history: list[Tensor]
    query: Tensor
    weight: Tensor | None = None
    gains: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    plan: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        weight = [] if self.weight is None else [self.weight]
        return [*self.history, self.query, *weight, *self.gains, *self.biases]

    def run(self, function: Callable[..., Any], history: Any = None) -> tuple[Tensor, ...]:
        history = self.history if history is None else history
        return function(history, self.query, self.weight, self.gains, self.biases, **self.plan)

    def to(self, dtype: torch.dtype) -> Case:
        def cast(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [x.detach().to(dtype).requires_grad_() for x in tensors]

        return Case(
            history=cast(self.history),
            query=cast([self.query])[0],
            weight=None if self.weight is None else cast([self.weight])[0],
            gains=cast(self.gains),
            biases=cast(self.biases),
            plan=self.plan,
        )


def leaves(count: int, *shape: int) -> list[Tensor]:
    return [torch.randn(*shape).requires_grad_() for _ in range(count)]


def strided(shape: tuple[int, int, int], kind: str) -> Tensor:
    """A leaf: contiguous, transposed, a slice of wider rows, or one row expanded."""
    batch, length, width = shape
    if kind == "t":
        x = torch.randn(length, batch, width).transpose(0, 1)
    elif kind == "s":
        x = torch.randn(batch, length, width + 3)[..., 1 : width + 1]
    elif kind == "e":
        x = torch.randn(batch, 1, width).expand(shape)
    else:
        x = torch.randn(shape)
    return x.detach().requires_grad_()


def draw(seed: int) -> Case:
    """A random call in float64. Odd widths, no tokens, one source, all strides."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    groups, each = r.choice([1, 1, 2, 3, 4]), r.choice([1, 5, 8, 16, 40, 67])
    sources, width = r.randint(1, 11), groups * each
    shape = r.choice([1, 2]), r.choice([0, 1, 3, 70]), width
    norm = r.choice(["layer_norm", "rms_norm", ""])
    normed = r.randint(0, 3) if norm else 0
    raw = int(not normed or r.random() < 0.4)
    vectors = [leaves(normed, width) if r.random() < 0.6 else [] for _ in range(2)]
    settings = {"groups": groups, "eps": 1e-3, "norm": norm, "norm_eps": 1e-2}
    return Case(
        history=[strided(shape, r.choice("ctse")) for _ in range(sources)],
        query=(torch.randn(width) * r.choice([0.1, 1, 20])).requires_grad_(),
        weight=leaves(1, width)[0] if r.random() < 0.6 else None,
        gains=vectors[0],
        biases=vectors[1],
        plan={**settings, "normed": normed, "raw": raw},
    )


PLAN = {"groups": 2, "eps": 1e-3, "norm": "rms_norm", "norm_eps": 1e-2, "normed": 1, "raw": 1}
RAW = {**PLAN, "norm": "", "normed": 0}


def history_of(hiddens: Sequence[Tensor], capacity: int = 0) -> History:
    history = None
    for x in hiddens:
        history = append(history, x, capacity=capacity or len(hiddens))
    assert isinstance(history, History)
    return history


def loss_of(outputs: Sequence[Tensor], seed: int = 0) -> Tensor:
    """A sum over some of the outputs; a transposed gradient comes back for every other one."""
    generator = torch.Generator().manual_seed(seed)
    total = outputs[0].new_zeros(())
    for i, y in enumerate(outputs):
        batch, length, width = y.shape
        cotangent = torch.randn(length, batch, width, generator=generator, dtype=double)
        cotangent = cotangent.to(y.dtype).transpose(0, 1)
        if (seed + i) % 3 or len(outputs) == 1:
            total = total + (y * (cotangent if i % 2 else cotangent.contiguous())).sum()
    return total


def grads_of(loss: Tensor, inputs: Sequence[Tensor], **more: Any) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(inputs), allow_unused=True, **more)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["list", "history"])
@pytest.mark.parametrize("block", range(8))
def test_it_is_what_its_definition_says(path: str, form: str, block: int) -> None:
    for seed in range(block * 12, block * 12 + 12):
        case = draw(seed)
        history = history_of(case.history) if form == "history" else case.history
        expected, found = case.run(reference), case.run(routed_mix, history)
        same(found, expected)
        wanted = case.leaves
        same(grads_of(loss_of(found, seed), wanted), grads_of(loss_of(expected, seed), wanted))
        with torch.no_grad():
            same(case.run(routed_mix, history), expected)


def test_the_gradients_are_those_of_gradcheck(path: str) -> None:
    for groups in (1, 3):
        hiddens, query, gain = leaves(6, 1, 3, 6), leaves(1, 6)[0], leaves(1, 6)[0]

        def run(query: Tensor, gain: Tensor, *hiddens: Tensor, groups: int = groups) -> Any:
            plan = {**PLAN, "groups": groups}
            return routed_mix(history_of(hiddens), query, None, [gain], **plan)

        assert torch.autograd.gradcheck(run, (query, gain, *hiddens))


def test_one_source_has_weight_one_and_its_query_no_gradient(path: str) -> None:
    for dtype in (double, torch.float32):
        x = torch.randn(2, 9, 48, dtype=dtype).requires_grad_()
        query = torch.randn(48, dtype=dtype).requires_grad_()
        (y,) = routed_mix(history_of([x]), query, **RAW)
        torch.testing.assert_close(y, x)
        y.square().sum().backward()
        torch.testing.assert_close(x.grad, 2 * x.detach())
        assert not query.grad.any()  # type: ignore[union-attr]


def test_outputs_share_no_memory(path: str) -> None:
    history = [torch.randn(1, 3, 4) for _ in range(2)]
    outputs = routed_mix(history, torch.randn(4), **{**PLAN, "normed": 2})
    before = [y.clone() for y in outputs]
    outputs[0].zero_()
    same(outputs[1:], before[1:])


def test_large_scores_neither_overflow_nor_vanish(path: str) -> None:
    for dtype, size in ((torch.float32, 1e4), (double, 1e6)):
        history = [torch.randn(1, 9, 64, dtype=dtype) for _ in range(7)]
        query = torch.randn(64, dtype=dtype) * size
        found = routed_mix(history, query, **RAW)[0]
        assert found.isfinite().all()
        expected = reference(history, query, **RAW)[0]
        assert ((found - expected).abs().amax(-1) < 1e-2).float().mean() > 0.8  # no near ties


def test_infinities_and_nan_pass(path: str) -> None:
    history = [torch.ones(1, 9, 20) for _ in range(6)]
    history[4][0, 1, 19] = torch.nan
    history[1][0, 0, 3] = torch.inf
    (y,) = routed_mix(history, torch.ones(20), **{**RAW, "groups": 1})
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
            (exact.to(dtype), f) for f in (reference, routed_mix)
        ]:
            history = history_of(case.history) if function is routed_mix else case.history
            outputs = case.run(function, history)
            results.append([*outputs, *grads_of(loss_of(outputs, 1), case.leaves)])
        ratios = []
        for truth, eager, ours in zip(*results, strict=True):
            ours, eager = ((x.to(double) - truth).abs().mean() + 1e-12 for x in (ours, eager))
            ratios.append(float(ours / eager))
        # One tensor of one draw says little: how a product is summed depends on the processor.
        assert statistics.geometric_mean(ratios) <= 2.5 and max(ratios) <= 6


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
        outputs = case.run(routed_mix, history_of(case.history))
        results.append([*outputs, *grads_of(loss_of(outputs, 1), case.leaves)])
    torch.set_num_threads(1)
    same(results[1], results[0])
    if path == "c":
        assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


# --- the history in autograd -----------------------------------------------------------------


def network(hiddens: list[Tensor], parameters: Sequence[Tensor], *, tracked: bool) -> Tensor:
    """Sublayers over a history that mixes read too, and that are read by themselves."""
    history: Any = None if tracked else []
    x = hiddens[0]
    for depth, query in enumerate(parameters):
        history = append(history, x, capacity=9) if tracked else [*history, x]
        plan = {**PLAN, "groups": 1 + depth % 2}
        a, b = (routed_mix if tracked else reference)(history, query[:12], **plan)
        if depth % 2:
            weights = query[12 : 13 + depth][None]
            function = mix if tracked else plain_mix
            b = b + function(history, weights)[0]
        x = torch.tanh(a) + b + hiddens[depth + 1] + 0.5 * history[depth // 2]
    return (x * x).sum()


def plain_mix(history: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    return [sum(w * x for w, x in zip(row, history, strict=True)) for row in weights]  # type: ignore


@pytest.fixture
def model() -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    hiddens = leaves(6, 2, 5, 12)
    return hiddens, leaves(5, 20)


def test_a_deep_history_has_the_gradients_of_a_list(path: str, model: Any) -> None:
    hiddens, parameters = model
    wanted = [*hiddens, *parameters]
    expected = grads_of(network(hiddens, parameters, tracked=False), wanted)
    same(grads_of(network(hiddens, parameters, tracked=True), wanted), expected)


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
                    + 0.3 * (mix if tracked else plain_mix)(history, query[:1].expand(1, i + 1))[0]
                )
            a, b = router(history, query, **plan)
            x = torch.tanh(a) + 0.5 * b
        return x.square().sum()

    wanted = [*queries, start]
    expected = grads_of(run(reference, False), wanted)
    same(grads_of(run(routed_mix, True), wanted), expected)


def test_gradients_of_a_subset_leave_nothing_behind(path: str, model: Any) -> None:
    hiddens, parameters = model
    wanted = [*hiddens, *parameters]
    expected = grads_of(network(hiddens, parameters, tracked=False), wanted)
    loss = network(hiddens, parameters, tracked=True)
    for i in (6, 0, 8, 3, 10):  # parameters alone never come to an Append
        same(grads_of(loss, wanted[i : i + 1], retain_graph=True), expected[i : i + 1])
    same(grads_of(loss, wanted), expected)


def test_two_backwards_add_up(path: str, model: Any) -> None:
    hiddens, parameters = model
    wanted = [*hiddens, *parameters]
    expected = grads_of(network(hiddens, parameters, tracked=False), wanted)
    loss = network(hiddens, parameters, tracked=True)
    loss.backward(retain_graph=True)
    loss.backward()
    same([x.grad for x in wanted], [2 * each for each in expected])  # type: ignore


def test_a_backward_that_fails_leaves_nothing_behind(path: str) -> None:
    x, query = leaves(1, 1, 3, 4)[0], leaves(1, 4)[0]
    history = append(None, x * 1)
    (y,) = routed_mix(history, query, **RAW)
    used = query * 1
    (z,) = routed_mix(history, used, **RAW)
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
    routed_mix(history, queries[0], **PLAN)
    used, expected = (f(h, queries[1], **PLAN)[1].square().sum() for f, h in
                      ((routed_mix, history), (reference, hiddens)))  # fmt: skip
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
        same(grads_of(loss_of(routed_mix(history, query, **PLAN), 1), wanted), expected)
    fixed = query.detach()
    for history in (history_of(hiddens), hiddens):
        found = grads_of(loss_of(routed_mix(history, fixed, **PLAN), 1), wanted)
        same(found, [*expected[:2], torch.zeros(4)])


def test_gradients_of_entries_and_their_hooks_see_everything(path: str) -> None:
    first, x, query = *leaves(2, 1, 3, 4), leaves(1, 4)[0]
    middle = x * 2
    history = append(append(None, first), middle)
    loss = loss_of(routed_mix(history, query, **RAW), 1) + history[1].square().sum()
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
    found = [y for h in (left, right, stem) for y in routed_mix(h, query, **PLAN)]
    lists = hiddens[:3], [*hiddens[:2], hiddens[3]], hiddens[:2]
    expected = [y for h in lists for y in reference(h, query, **PLAN)]
    wanted = [*hiddens, query]
    same(grads_of(loss_of(found, 1), wanted), grads_of(loss_of(expected, 1), wanted))


def test_another_eps_is_another_scale(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    history = history_of(hiddens)
    for eps in (1e-3, 2.0, 1e-3):
        plan = {**PLAN, "eps": eps}
        same(routed_mix(history, query, **plan), reference(hiddens, query, **plan))


def test_a_history_that_was_changed_is_read_as_it_is(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    history = history_of(hiddens[:2])
    routed_mix(history, query, **PLAN)
    history[0] = hiddens[2]
    lists = [hiddens[2], hiddens[1]]
    found, expected = routed_mix(history, query, **PLAN), reference(lists, query, **PLAN)
    same(found, expected)
    same(grads_of(loss_of(found, 1), hiddens), grads_of(loss_of(expected, 1), hiddens))
    middle = hiddens[0] * 2
    history = history_of([middle, hiddens[1]])
    routed_mix(history, query, **PLAN)
    middle.mul_(3)
    lists = [hiddens[0] * 6, hiddens[1]]
    same(routed_mix(history, query, **PLAN), reference(lists, query, **PLAN))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(path: str, mode: Any, model: Any) -> None:
    hiddens, parameters = model
    expected = network(hiddens, parameters, tracked=False)
    with mode():
        found = network(hiddens, parameters, tracked=True)
    torch.testing.assert_close(found, expected.detach())


def test_a_look_in_inference_mode_spoils_no_training(path: str) -> None:
    hiddens, query = leaves(3, 1, 3, 4), leaves(1, 4)[0]
    history = history_of(hiddens)
    with torch.inference_mode():
        routed_mix(history, query, **PLAN)
    found, expected = routed_mix(history, query, **PLAN), reference(hiddens, query, **PLAN)
    same(grads_of(loss_of(found, 1), hiddens), grads_of(loss_of(expected, 1), hiddens))


def test_checkpoint_of_a_region_that_holds_a_router(path: str) -> None:
    hiddens, queries = leaves(3, 2, 3, 4), leaves(2, 4)
    history = history_of(hiddens)

    def region(h: Any, q: Tensor) -> Any:
        return routed_mix(h, q, **PLAN)

    outputs = [
        *checkpoint(region, history, queries[0], use_reentrant=False),
        *routed_mix(history, queries[1], **PLAN),
    ]
    expected = [y for q in queries for y in reference(hiddens, q, **PLAN)]
    wanted = [*hiddens, *queries]
    same(grads_of(loss_of(outputs, 1), wanted), grads_of(loss_of(expected, 1), wanted))


def test_checkpoint_of_a_region_that_appends_too(path: str) -> None:
    hiddens, queries = leaves(3, 2, 3, 4), leaves(2, 4)

    def region(history: Any, x: Tensor, q: Tensor) -> Any:
        longer = append(history, x * 2, capacity=4)
        return routed_mix(longer, q, **PLAN)[0], longer

    history = history_of(hiddens[:2], capacity=4)
    y, longer = checkpoint(region, history, hiddens[2], queries[0], use_reentrant=False)
    lists = [*hiddens[:2], hiddens[2] * 2]
    expected = [reference(lists, queries[0], **PLAN)[0], *reference(lists, queries[1], **PLAN)]
    wanted = [*hiddens, *queries]
    found = loss_of([y, *routed_mix(longer, queries[1], **PLAN)], 1)
    same(grads_of(found, wanted), grads_of(loss_of(expected, 1), wanted))


def test_saved_tensor_hooks_see_what_is_saved(path: str, model: Any) -> None:
    hiddens, parameters = model
    expected = grads_of(network(hiddens, parameters, tracked=False), hiddens)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        loss = network(hiddens, parameters, tracked=True)
    same(grads_of(loss, hiddens), expected)


def test_a_changed_hidden_is_noticed(path: str) -> None:
    x, query = torch.randn(1, 3, 4), leaves(1, 4)[0]
    middle = x.requires_grad_() * 2
    (y,) = routed_mix(append(None, middle), query, **RAW)
    middle.add_(1)
    with pytest.raises(RuntimeError, match=r"modified .*inplace"):
        y.sum().backward()


@pytest.mark.parametrize("form", ["list", "history"])
def test_a_second_derivative_is_refused(path: str, form: str) -> None:
    hiddens, query = leaves(2, 1, 3, 4), leaves(1, 4)[0]
    history = hiddens if form == "list" else history_of(hiddens)
    loss = routed_mix(history, query, **PLAN)[0].square().sum()

    def twice() -> None:
        (grad,) = torch.autograd.grad(loss, [hiddens[0]], create_graph=True)
        grad.sum().backward()

    with pytest.raises(RuntimeError, match="routed_mix"):
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
        (y,) = routed_mix(history, query, **RAW)
        torch.autograd.grad(y.sum(), [x, query] if wanted == "all" else [query])
        del middle, history, y
        assert seen() is None
        assert not any(type(each) is Debt for each in gc.get_objects())
    finally:
        gc.enable()


# --- programs that are compiled, and the kernel's claim ----------------------------------------


def test_the_operators_are_what_torch_asks_of_them(path: str) -> None:
    hiddens, query, gains = leaves(3, 2, 3, 4), leaves(1, 4)[0], leaves(1, 4)
    settings = 2, 1e-3, "rms_norm", 1e-2, 1, True
    torch.library.opcheck(routed_mix_op, (hiddens, query, gains, [], *settings))
    torch.library.opcheck(routed_mix_op, (hiddens, query, [], [], 1, 1e-3, "", 0.0, 0, True))


def test_a_compiled_program_is_the_eager_one(path: str) -> None:
    hiddens, query, weight, gains = leaves(3, 2, 3, 4), *leaves(2, 4), leaves(1, 4)

    def program(query: Tensor, weight: Tensor, gain: Tensor, *hiddens: Tensor) -> Any:
        history = None
        for x in hiddens:
            history = append(history, x, capacity=3)
        a, b = routed_mix(history, query, weight, [gain], **PLAN)
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
            outputs = routed_mix(history_of(hiddens), query, **PLAN)
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

    found = run(routed_mix, history_of(hiddens), lambda h: fused_mix(h, weights, **plan)[0])
    expected = run(reference, hiddens, by_hand)
    same(found, expected)
    wanted = [*hiddens, query, weights]
    same(grads_of(loss_of(found, 1), wanted), grads_of(loss_of(expected, 1), wanted))


def test_what_is_refused() -> None:
    refuses = kernels()["routed_mix"].refuses
    hiddens, query = [torch.randn(2, 3, 4) for _ in range(3)], torch.randn(4)
    assert refuses(hiddens, query, **PLAN) is None
    for history, given, plan, reason in [
        ([], query, PLAN, "no sources"),
        (hiddens, query[:3], PLAN, "shapes that do not fit"),
        ([*hiddens, hiddens[0][:1]], query, PLAN, "shapes that do not fit"),
        (hiddens, query, {**PLAN, "groups": 3}, "shapes that do not fit"),
        (hiddens, query, {**PLAN, "norm": "other"}, "other: no kernel for this norm"),
        (hiddens, query.float(), PLAN, "tensors of unlike types"),
        ([x[..., :0] for x in hiddens], query[:0], PLAN, "rows without elements"),
        ([x.to("meta") for x in hiddens], query.to("meta"), PLAN, "meta: no kernel yet"),
    ]:
        found = refuses(history, given, **plan)
        assert found is not None and found.startswith(reason)
