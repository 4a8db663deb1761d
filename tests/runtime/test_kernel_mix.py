"""The depth mix against its definition, by every way it can run, and what keeps C files compiled.

The definition is written out here once more, in the fewest words; float64 decides.
"""

from __future__ import annotations

import gc
import os
import random
import stat
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.mix import History, append, compiled, fused_mix, mix
from multiway.runtime.kernels.mix.op import fused_mix_backward_op, fused_mix_op
from multiway.runtime.kernels.native import build

double = torch.float64
needs_c = pytest.mark.skipif(
    native.library("mix") is None, reason=f"no C kernel: {native.refused('mix')}"
)


@pytest.fixture(params=[pytest.param("c", marks=needs_c), "plain"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with the C kernel and without."""
    if request.param == "c":
        yield "c"
        return
    with native.disabled():
        yield "plain"


def reference(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    norm: str,
    eps: float,
    normed: Sequence[int],
    raw: Sequence[int],
) -> tuple[Tensor, ...]:
    """What a mix means."""

    def stream(c: int) -> Tensor:
        return sum(weights[..., c, i, None] * x for i, x in enumerate(history))  # type: ignore

    def normalised(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if norm == "layer_norm":
            wide = wide - wide.mean(-1, keepdim=True)
        return (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)

    made = []
    for i, c in enumerate(normed):
        y = normalised(stream(c))
        y = y * gains[i] if gains else y
        made.append(y + biases[i] if biases else y)
    return (*made, *(stream(c) for c in raw))


@dataclass(kw_only=True)
class Case:
    """Arguments of one mix, all leaves."""

    history: list[Tensor]
    weights: Tensor
    gains: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    plan: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.history, self.weights, *self.gains, *self.biases]

    def run(self, function: Callable[..., Any], history: Any = None) -> tuple[Tensor, ...]:
        history = self.history if history is None else history
        return function(history, self.weights, self.gains, self.biases, **self.plan)

    def to(self, dtype: torch.dtype) -> Case:
        def cast(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [x.detach().to(dtype).requires_grad_() for x in tensors]

        return Case(
            history=cast(self.history),
            weights=cast([self.weights])[0],
            gains=cast(self.gains),
            biases=cast(self.biases),
            plan=self.plan,
        )


def draw(seed: int) -> Case:
    """A random mix in float64. Odd widths, no tokens, ways that repeat or that nobody reads."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    sources, ways, width = r.randint(1, 9), r.randint(1, 9), r.choice([1, 5, 16, 40, 128, 257])
    shape = r.choice([1, 2]), r.choice([0, 1, 3, 70]), width
    norm = r.choice(["layer_norm", "rms_norm", ""])
    normed = [r.randrange(ways) for _ in range(r.randint(0, 4))] if norm else []
    raw = [r.randrange(ways) for _ in range(r.randint(0 if normed else 1, 3))]
    raw = list(range(ways)) if r.random() < 0.3 else raw
    shared = r.random() < 0.4
    vectors = [leaves(len(normed), width) if r.random() < 0.5 else [] for _ in range(2)]
    return Case(
        history=[strided(shape, r.choice("ctse")) for _ in range(sources)],
        weights=torch.randn(*(() if shared else shape[:2]), ways, sources).requires_grad_(),
        gains=vectors[0],
        biases=vectors[1],
        plan={"norm": norm, "eps": 1e-5, "normed": normed, "raw": raw},
    )


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    torch.set_default_dtype(double)
    yield
    torch.set_default_dtype(torch.float32)


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
            allowed = 3 * (eager.to(double) - truth).abs().mean() + 1e-12
            assert (ours.to(double) - truth).abs().mean() <= allowed


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


# --- the history in autograd -----------------------------------------------------------------


def network(hiddens: list[Tensor], parameters: Sequence[Tensor], *, tracked: bool) -> Tensor:
    """Blocks over a history that also reads entries by itself, as skip connections do."""
    history: Any = None if tracked else []
    x = hiddens[0]
    for depth, weights in enumerate(parameters):
        history = append(history, x, capacity=9) if tracked else [*history, x]
        function = fused_mix if tracked else reference
        plan = {"norm": "rms_norm", "eps": 1e-5, "normed": [0], "raw": [1]}
        a, b = function(history, weights[:, : depth + 1], **plan)
        x = torch.tanh(a) + b + hiddens[depth + 1] + 0.5 * history[depth // 2]
    return (x * x).sum()


@pytest.fixture
def model() -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    hiddens = leaves(6, 2, 5, 12)
    return hiddens, leaves(5, 3, 5)


def test_a_deep_history_has_the_gradients_of_a_list(path: str, model: Any) -> None:
    hiddens, parameters = model
    inputs = [*hiddens, *parameters]
    expected = grads_of(network(hiddens, parameters, tracked=False), inputs)
    same(grads_of(network(hiddens, parameters, tracked=True), inputs), expected)


def test_gradients_of_a_subset_leave_nothing_behind(path: str, model: Any) -> None:
    hiddens, parameters = model
    inputs = [*hiddens, *parameters]
    expected = grads_of(network(hiddens, parameters, tracked=False), inputs)
    loss = network(hiddens, parameters, tracked=True)
    for i in (6, 0, 8, 3, 10):  # parameters alone never come to an Append
        same(grads_of(loss, inputs[i : i + 1], retain_graph=True), expected[i : i + 1])
    same(grads_of(loss, inputs), expected)


def test_two_backwards_add_up(path: str, model: Any) -> None:
    hiddens, parameters = model
    inputs = [*hiddens, *parameters]
    expected = grads_of(network(hiddens, parameters, tracked=False), inputs)
    loss = network(hiddens, parameters, tracked=True)
    loss.backward(retain_graph=True)
    loss.backward()
    same([x.grad for x in inputs], [2 * each for each in expected])  # type: ignore


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


def mix_reference(history: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    ways = range(weights.shape[-2])
    return reference(history, weights, norm="", eps=0.0, normed=[], raw=ways)


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


def test_a_history_that_was_changed_is_read_as_it_is(path: str) -> None:
    hiddens, weights = leaves(3, 1, 3, 4), leaves(1, 2, 2)[0]
    history = history_of(hiddens[:2])
    history[0] = hiddens[2]
    lists = [hiddens[2], hiddens[1]]
    found, expected = mix(history, weights), mix_reference(lists, weights)
    same(found, expected)
    same(grads_of(loss_of(found, 1), hiddens), grads_of(loss_of(expected, 1), hiddens))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(path: str, mode: Any, model: Any) -> None:
    hiddens, parameters = model
    expected = network(hiddens, parameters, tracked=False)
    with mode():
        found = network(hiddens, parameters, tracked=True)
    torch.testing.assert_close(found, expected.detach())


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


def test_saved_tensor_hooks_see_what_is_saved(path: str, model: Any) -> None:
    hiddens, parameters = model
    expected = grads_of(network(hiddens, parameters, tracked=False), hiddens)
    packed = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = network(hiddens, parameters, tracked=True)
    assert len(packed) >= sum(range(2, 7))  # five mixes, with their weights
    same(grads_of(loss, hiddens), expected)


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


# --- operators -------------------------------------------------------------------------------


def arguments(seed: int, norm: str = "rms_norm") -> tuple[Any, ...]:
    torch.manual_seed(seed)
    shared: Any = () if seed % 2 else (2, 3)
    normed, raw = ([0, 2, 0], [1, 2]) if norm else ([], [1, 0])
    vectors = [leaves(len(normed), 5) if seed % 3 != k else [] for k in (1, 2)]
    weights = torch.randn(*shared, 3, 4).requires_grad_()
    return leaves(4, 2, 3, 5), weights, *vectors, norm, 1e-5, normed, raw


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", ""])
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

    refuses = kernels()["fused_mix"].refuses

    def function(hiddens: list[Tensor], weights: Tensor, gains: list[Tensor]) -> Any:
        history: Any = None
        for x in (*hiddens, hiddens[0] + hiddens[1]):
            history = append(history, x, capacity=3)
        plan = {"norm": "rms_norm", "eps": 1e-6, "normed": [0], "raw": [1]}
        assert refuses(history, weights, gains, **plan) is None
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


def test_what_the_kernels_refuse() -> None:
    history = [torch.randn(1, 3, 4) for _ in range(2)]
    weights = torch.randn(2, 2)
    refuses = kernels()["mix"].refuses
    meta = [x.to("meta") for x in history]
    assert refuses(history, weights) is None
    assert refuses(meta, weights.to("meta")) == "meta: no kernel yet"
    assert refuses([], weights) == "no sources"
    assert refuses(history, torch.randn(2, 3)) == "shapes that do not fit"
    assert refuses(history, torch.randn(1, 2, 2, 2)) == "shapes that do not fit"
    assert "unlike types" in str(refuses(history, weights.float()))
    assert refuses([x.int() for x in history], weights.int()) == "int32: no kernel for this type"
    assert kernels()["append"].refuses(None, meta[0]) == "meta: no kernel yet"
    fused = kernels()["fused_mix"].refuses
    plan: dict[str, Any] = {"norm": "rms_norm", "eps": 0.0, "normed": [0], "raw": []}
    assert fused(history, weights, **plan) is None
    assert fused(history, weights, [torch.ones(5)], **plan) == "shapes that do not fit"
    assert fused(history, weights, **{**plan, "raw": [2]}) == "shapes that do not fit"
    assert fused(history, weights, **{**plan, "norm": "other"}) == "other: no kernel for this norm"
    inside = []
    torch.func.grad(lambda x: inside.append(refuses([x, x], weights)) or x.sum())(history[0])
    assert inside == ["torch.func: no kernel under its transforms"]


@needs_c
def test_what_fits_not_never_reaches_c() -> None:
    history = [torch.randn(1, 3, 4), torch.randn(1, 2, 4)]
    for weights in (torch.randn(1, 2), torch.randn(1, 3), torch.randn(1, 2).float()):
        with pytest.raises(AssertionError), torch.no_grad():
            mix(history, weights)


# --- compiling C files -----------------------------------------------------------------------


def tools_for(folder: Path) -> build.Toolchain:
    tools = build.toolchain(folder)
    assert isinstance(tools, build.Toolchain)
    return tools


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@needs_c
def test_a_file_is_compiled_once_and_found_again(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    loaded = build.load(source, tools_for(folder))
    assert not isinstance(loaded, build.Refused) and loaded.answer() == 42
    (made,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    changed = made.stat().st_mtime_ns
    assert not isinstance(build.load(source, tools_for(folder)), build.Refused)
    assert made.stat().st_mtime_ns == changed
    source.write_text("int answer(void) { return 43; }\n")
    loaded = build.load(source, tools_for(folder))
    assert not isinstance(loaded, build.Refused) and loaded.answer() == 43
    assert len(list(folder.iterdir())) == 2


@needs_c
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_file_is_made_again(tmp_path: Path, source: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    build.load(source, tools_for(folder))
    (made,) = folder.iterdir()
    whole = made.read_bytes()
    bad = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a library" * 9}
    flipped = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    made.unlink()  # this process has the old one mapped
    made.write_bytes(bad.get(damage, flipped))
    code = (
        "import sys; from pathlib import Path; from multiway.runtime.kernels.native import build\n"
        "tools = build.toolchain(Path(sys.argv[2]))\n"
        "print(build.load(Path(sys.argv[1]), tools).answer())\n"
    )
    assert run(code, str(source), str(folder)) == "42"
    assert made.read_bytes() == whole


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_c
def test_processes_that_compile_at_once(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from multiway.runtime.kernels.native import build\n"
        "print(build.load(Path(sys.argv[1]), build.toolchain(Path(sys.argv[2]))).answer())\n"
    )
    command = [sys.executable, "-c", code, str(source), str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [each.communicate()[0].strip() for each in running] == ["42"] * 3
    assert [p.suffix for p in folder.iterdir()] == [".so"]


def fake(folder: Path, body: str) -> build.Toolchain:
    """A compiler that is a shell script."""
    script = folder / "fakecc"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return build.Toolchain(compiler=str(script), version="0", folder=folder / "cache")


def test_a_compiler_that_fails_is_a_reason(tmp_path: Path, source: Path) -> None:
    found = build.load(source, fake(tmp_path, "echo warm; echo 'error: no disk' >&2; exit 1"))
    assert isinstance(found, build.Refused) and found.reason.endswith("failed: error: no disk")
    assert found.reason.startswith("answer.c: ")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_writes_rubbish_is_a_reason(tmp_path: Path, source: Path) -> None:
    script = 'while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"'
    assert isinstance(build.load(source, fake(tmp_path, script)), build.Refused)


def test_no_compiler_and_a_compiler_that_is_gone_are_reasons(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = fake(tmp_path, "exit 0")
    Path(tools.compiler).unlink()
    assert isinstance(build.load(source, tools), build.Refused)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = build.toolchain()
    assert found == build.Refused("no C compiler: none of cc, gcc, clang was found")


def test_a_folder_that_cannot_be_used_is_a_reason(tmp_path: Path, source: Path) -> None:
    tools = fake(tmp_path, "exit 0")
    tools.folder.write_text("a file")
    assert isinstance(build.load(source, tools), build.Refused)
    tools.folder.unlink()
    tools.folder.mkdir()
    tools.folder.chmod(0o777)
    found = build.load(source, tools)
    assert isinstance(found, build.Refused) and "can be written by others" in found.reason


def test_the_cache_folder() -> None:
    assert build.cache_folder({"XDG_CACHE_HOME": "/x/y"}) == Path("/x/y/multiway")
    home = Path(os.path.expanduser("~")) / ".cache" / "multiway"
    assert build.cache_folder({}) == build.cache_folder({"XDG_CACHE_HOME": "rel"}) == home


@needs_c
def test_one_openmp_runtime_is_loaded() -> None:
    code = (
        "from multiway.runtime.kernels import native\n"
        "from multiway.runtime.kernels.native.build import openmp_runtimes\n"
        "before = openmp_runtimes()\n"
        "assert native.library('mix') is not None\n"
        "assert openmp_runtimes() == before and len(before) == 1, openmp_runtimes()\n"
    )
    run(code)


@needs_c
def test_a_second_openmp_runtime_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = iter([{"/a/libgomp.so.1"}, {"/a/libgomp.so.1", "/b/libomp.so.5"}])
    tools = tools_for(tmp_path / "cache")
    build.load(source, tools)
    monkeypatch.setattr(build, "openmp_runtimes", lambda: next(maps))
    (made,) = tools.folder.iterdir()
    found = build._open(made)
    assert found == build.Refused("it brings a second OpenMP runtime: /b/libomp.so.5")


def test_switching_c_off() -> None:
    with native.disabled():
        assert native.library("mix") is None
        assert native.refused("mix") == "C kernels are switched off"
        assert not compiled.available(double)
    assert (native.library("mix") is None) == (native.refused("mix") is not None)
    with pytest.raises(AssertionError, match=r"no C file is called nothing\.c"):
        native.library("nothing")
