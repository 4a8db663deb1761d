"""Products by copies of weights: what torch's linear computes, and never with an old weight."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comparing import draw
from rounding import assert_no_farther, unit
from strategies import randomise
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import multiway as mw
from multiway.runtime.kernels import kernels
from multiway.runtime.kernels.linear import prepacked
from multiway.runtime.kernels.linear.linear_sum import linear_sum
from multiway.runtime.kernels.linear.packed_linear import packed_linear
from multiway.runtime.parameters import packed

ROWS = prepacked.FEWEST_ROWS
WIDEST = 256  # numbers of a row in the small members
TYPES = [
    pytest.param(
        each,
        marks=pytest.mark.skipif(
            not prepacked._available(each), reason=f"this torch keeps no copies for {each}"
        ),
    )
    for each in (torch.float32, torch.bfloat16)
]
of_every_type = pytest.mark.parametrize("dtype", TYPES)
Made = tuple[Tensor, list[Tensor], list[Tensor]]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def watched(ran: list[str], name: str, inner: Any) -> Any:
    def function(*args: Any) -> Any:
        ran.append(name)
        return inner(*args)

    return function


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what ran by a copy. Small weights are copied, too."""
    monkeypatch.setattr(prepacked, "SMALLEST", 1)
    monkeypatch.setattr(prepacked, "FEWEST", 1)
    ran: list[str] = []
    for kind in (prepacked._OneDNN, prepacked._MKL):
        for name in ("linears", "added"):
            monkeypatch.setattr(kind, name, watched(ran, name, getattr(kind, name)))
    return ran


def made(dtype: torch.dtype, *lead: int, widths: tuple[int, ...] = (24, 7)) -> Made:
    x = draw(*(lead or (2, ROWS)), 20, dtype=torch.float32, seed=0).to(dtype)
    weights = [draw(f, 20, dtype=torch.float32, seed=f).to(dtype) for f in widths]
    biases = [draw(f, dtype=torch.float32, seed=99 + f).to(dtype) for f in widths]
    return x, weights, biases


def near(
    found: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Any = 0,
    rounded: Any = 0,
) -> None:
    """No farther from the exact result than sums in float32, in any order, rounded twice.

    rounded: absolute values of what else may be rounded on the way.
    """
    given = [x.double(), weight.double(), None if bias is None else bias.double()]
    more = residual.double() if isinstance(residual, Tensor) else residual
    product = F.linear(*given)
    exact = product + more
    sizes = F.linear(*[None if each is None else each.abs() for each in given]) + abs(more)
    allowed = (x.shape[-1] + 2) * unit(torch.float32) * sizes
    if x.dtype != torch.float32:
        allowed += unit(x.dtype) * (product.abs() + exact.abs() + rounded)
    assert found.dtype == x.dtype and found.shape == exact.shape
    assert ((found.double() - exact).abs() <= 1.01 * allowed).all()


@of_every_type
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("widths", [(24,), (24, 7), (5, 5, 5)])
@pytest.mark.parametrize("lead", [(2, ROWS), (ROWS + 3,), (2, 3, ROWS)])
def test_linears(
    dtype: torch.dtype,
    biased: bool,
    widths: tuple[int, ...],
    lead: tuple[int, ...],
    used: list[str],
) -> None:
    x, weights, biases = made(dtype, *lead, widths=widths)
    biases = biases if biased else []
    assert prepacked.linears(x, weights, biases) is None
    prepacked.tell(weights)
    for _ in range(2):
        results = packed_linear(x, weights, biases or None)
        given = zip(results, weights, biases or [None] * len(weights), strict=True)
        for found, weight, bias in given:
            near(found, x, weight, bias)
    assert used == ["linears"] * 2


@of_every_type
def test_sums(dtype: torch.dtype, used: list[str]) -> None:
    x, (first, second), biases = made(dtype, widths=(24, 24))
    residual = draw(2, ROWS, 24, dtype=torch.float32, seed=5).to(dtype)
    before = residual.clone()
    prepacked.tell([first])
    near(linear_sum(residual, [x], [first], biases[:1]), x, first, biases[0], residual)
    near(linear_sum(residual, [x], [first]), x, first, None, residual)
    assert used.count("added") == 2 and torch.equal(residual, before)
    prepacked.tell([second])
    both = torch.cat([first, second], -1)
    twice = torch.cat([x, x], -1)
    found = linear_sum(residual, [x, x], [first, second], biases)
    # Processors differ in what they round: each product, and the sum with the first of them.
    ones = [
        F.linear(x.double(), w.double(), b.double())
        for w, b in ((first, biases[0]), (second, biases[1]))
    ]
    rounded = ones[0].abs() + ones[1].abs() + (residual.double() + ones[0]).abs()
    near(found, twice, both, biases[0].double() + biases[1].double(), residual, rounded)


@of_every_type
def test_any_layout(dtype: torch.dtype, used: list[str]) -> None:
    x, weights, biases = made(dtype, ROWS, 2)
    prepacked.tell(weights[:1])
    for each in (x.transpose(0, 1), x[:, :1], x[::2], x.expand(3, *x.shape)):
        near(prepacked.linear(each, weights[0], biases[0]), each, weights[0], biases[0])
    wide = torch.cat([weights[0], weights[0]], 1)[:, :20]
    prepacked.tell([wide])
    near(prepacked.linear(x, wide, biases[0]), x, wide, biases[0])
    nothing = prepacked.linear(x[:0], weights[0], biases[0])
    assert nothing.shape == (0, 2, 24)


@of_every_type
def test_copies_follow_their_weights(dtype: torch.dtype, used: list[str]) -> None:
    x, weights, biases = made(dtype)
    weight, bias = weights[0], biases[0]
    prepacked.tell([weight])
    prepacked.linear(x, weight, bias)
    for change in (weight, bias):
        change.mul_(2)
        near(prepacked.linear(x, weight, bias), x, weight, bias)
    weight.data = weight * 3  # in another place
    near(prepacked.linear(x, weight, bias), x, weight, bias)
    assert len(used) == 4
    other = weight * 5
    near(prepacked.linear(x, other, bias), x, other, bias)
    assert len(used) == 4  # another weight was never told
    number = id(weight)
    assert number in prepacked._told
    del weights, weight, change
    gc.collect()
    assert number not in prepacked._told


@of_every_type
def test_no_copy_is_kept_where_nobody_counts_writes(dtype: torch.dtype, used: list[str]) -> None:
    """Weights that were made in inference mode have no version."""
    with torch.inference_mode():
        x, (weight, ordinary), (bias, other) = made(dtype, widths=(24, 24))
    ordinary = ordinary.clone()
    for told, beside in ((weight, other.clone()), (ordinary, bias)):
        prepacked.tell([told])
        for _ in range(2):
            near(prepacked.linear(x, told, beside), x, told, beside)
            with torch.inference_mode():
                (told if told.is_inference() else beside).mul_(2)
    assert not used


@of_every_type
def test_copies_of_folded_weights_are_made_once_in_inference_mode(
    dtype: torch.dtype, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "FEWEST_ROWS", 1)
    model = mw.compile("pythia-test", dtype=dtype, mode="inference")
    copies: list[str] = []
    monkeypatch.setattr(prepacked, "_made", watched(copies, "made", prepacked._made))
    with torch.inference_mode():
        model(**inputs(model, dtype))
        first = len(copies)
        model(**inputs(model, dtype))
    assert used and 0 < first == len(copies)


@of_every_type
def test_what_was_told_of_a_weight_is_not_of_another(
    dtype: torch.dtype, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is made where a weight was has its number before that is forgotten."""
    x, (weight, other), _ = made(dtype, ROWS, widths=(24, 24))
    prepacked.tell([weight])
    monkeypatch.setitem(prepacked._told, id(other), prepacked._told[id(weight)])
    assert prepacked.known([weight]) and not prepacked.known([other])
    near(prepacked.linear(x, other), x, other, None)
    assert not used
    prepacked.tell([other])
    near(prepacked.linear(x, other), x, other, None)
    near(prepacked.linear(x, weight), x, weight, None)
    assert used == ["linears", "linears"]


@of_every_type
def test_what_they_leave_to_torch(dtype: torch.dtype, used: list[str]) -> None:
    x, weights, biases = made(dtype)
    weight, bias = weights[0], biases[0]
    prepacked.tell([weight])
    with FlopCounterMode(display=False) as counted:  # whoever follows operators sees the product
        prepacked.linear(x, weight, bias)
    assert counted.get_total_flops() == 2 * 2 * ROWS * 20 * 24
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prepacked.linear(x, weight, bias).dtype == torch.bfloat16
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        prepacked.tell([leaf])
        prepacked.linear(x, leaf, bias).sum().backward()
        assert leaf.grad is not None
        residual = torch.zeros(2, ROWS, 24, dtype=dtype, requires_grad=True)
        linear_sum(residual, [x], [weight], [bias]).sum().backward()
        assert residual.grad is not None
    assert not used
    with torch.inference_mode():
        near(prepacked.linear(x, weight, bias), x, weight, bias)
    near(prepacked.linear(x, weight, bias), x, weight, bias)
    assert used == ["linears"] * 2
    assert not prepacked.known(weights)
    with pytest.raises(RuntimeError):  # as torch's own
        prepacked.linear(x, weight, bias.double())


@pytest.mark.parametrize("dtype", TYPES[:1])
def test_copies_of_mkl_are_for_one_number_of_rows(dtype: torch.dtype, used: list[str]) -> None:
    x, weights, biases = made(dtype)

    def run(rows: int) -> bool:
        used.clear()
        part = x.reshape(-1, 20)[:rows]
        near(prepacked.linear(part, weights[0], biases[0]), part, weights[0], biases[0])
        return bool(used)

    prepacked.tell(weights[:1])
    assert not run(1) and run(ROWS) and not run(1)
    others = prepacked.PATIENCE - 1
    assert [run(2 * ROWS) for _ in range(others + 2)] == [*[False] * others, True, True]
    assert not run(ROWS) and run(2 * ROWS) and not run(ROWS)


@of_every_type
@pytest.mark.parametrize("name", ["pythia-test", "mudd-pythia-test", "mixtral-test", "vit-test"])
def test_inference_programs_keep_copies(
    name: str, dtype: torch.dtype, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "FEWEST_ROWS", 1)
    options: list[dict[str, Any]] = [{"fuse": False}, {"mode": "inference"}]
    eager, model = (mw.compile(name, dtype=dtype, **each) for each in options)
    exact = mw.compile(name, dtype=torch.float64, fuse=False)
    given = inputs(model, dtype)
    for seed in (1, 2):  # the second time copies are there, of weights that have changed
        for each in (eager, model):
            randomise(each, seed=seed)
        exact.load_state_dict({k: v.double() for k, v in eager.state_dict().items()})
        want, by_eager, ours = results([exact, eager, model], given)
        assert_no_farther(ours, by_eager, want, terms=WIDEST)
    assert used
    assert model.state_dict().keys() == eager.state_dict().keys()
    stored = io.BytesIO()
    torch.save(model.state_dict(keep_vars=True), stored)
    stored.seek(0)
    assert torch.load(stored, weights_only=True).keys() == model.state_dict().keys()
    assert torch.equal(copy.deepcopy(model)(**given), model(**given))


def results(models: list[mw.Model], given: dict[str, Tensor]) -> list[Tensor]:
    found = []
    for model in models:
        dtype = next(model.parameters()).dtype
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
        found.append(model(**cast))
    return found


def inputs(model: mw.Model, dtype: torch.dtype) -> dict[str, Tensor]:
    (expected,) = model.expected("forward")
    if expected.dtype == "int":
        return {expected.name: torch.arange(12).reshape(2, 6) % 7}
    shape = [2 if isinstance(size, str) else size for size in expected.shape]
    return {expected.name: draw(*shape, dtype=torch.float32, seed=1).to(dtype)}


@of_every_type
def test_weights_of_one_call_are_used_in_it(dtype: torch.dtype, used: list[str]) -> None:
    options: list[dict[str, Any]] = [{"fuse": False}, {"mode": "inference"}]
    eager, model = (mw.compile("pythia-test", dtype=dtype, **each) for each in options)
    exact = mw.compile("pythia-test", dtype=torch.float64, fuse=False)
    tokens = {"tokens": torch.arange(64).reshape(2, 32)}
    randomise(eager)
    model(**tokens)
    for scale in (1.0, 0.5):
        state = {k: p * scale for k, p in eager.named_parameters()}
        want, by_eager, ours = (
            torch.func.functional_call(
                each,
                {k: p.to(next(each.parameters()).dtype) for k, p in state.items()},
                kwargs=tokens,
            )
            for each in (exact, eager, model)
        )
        assert_no_farther(ours, by_eager, want, terms=WIDEST)


@pytest.mark.parametrize("dtype", TYPES[:1])
def test_small_weights_in_float32_are_left_to_torch(
    dtype: torch.dtype, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights, biases = made(dtype)
    prepacked.tell(weights[:1])
    monkeypatch.setattr(prepacked, "SMALLEST", 24 * 20 + 1)
    prepacked.linear(x, weights[0], biases[0])
    assert not used
    monkeypatch.setattr(prepacked, "SMALLEST", 24 * 20)
    prepacked.linear(x, weights[0], biases[0])
    assert used


@pytest.mark.parametrize("dtype", TYPES[:1])
def test_another_weight_with_the_number_of_one_that_is_gone_is_told(
    dtype: torch.dtype, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "id", lambda _: 0, raising=False)
    root = torch.nn.Module()
    tell = packed.Packing([["weight"]], root)
    for _ in range(2):
        root.weight = torch.nn.Parameter(torch.ones(8, 20, dtype=dtype), requires_grad=False)
        tell()
        assert prepacked.known([root.weight])


def test_copies_leave_room(monkeypatch: pytest.MonkeyPatch, used: list[str]) -> None:
    monkeypatch.setattr(packed, "ROOM", 1e-9)
    model = mw.compile("pythia-test", mode="inference")
    model(tokens=torch.arange(64)[None])
    assert not used
    assert not prepacked.known([model.get_parameter("heads.lm.weight")])


@of_every_type
def test_small_products_are_left_to_torch(
    dtype: torch.dtype, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights, biases = made(dtype)
    prepacked.tell(weights[:1])
    monkeypatch.setattr(prepacked, "FEWEST", x.numel() * 24 + 1)
    residual = torch.zeros(2, ROWS, 24, dtype=dtype)
    prepacked.linear(x, weights[0], biases[0])
    linear_sum(residual, [x], weights[:1], biases[:1])
    assert not used
    takes = kernels()["linear_sum"].takes
    assert takes is not None
    assert (takes(residual, [x], weights[:1]) is None) == (dtype == torch.float32)
    monkeypatch.setattr(prepacked, "FEWEST", x.numel() * 24)
    prepacked.linear(x, weights[0], biases[0])
    assert used


def test_the_kernel_says_why_not(used: list[str]) -> None:
    x, weights, biases = made(torch.float32)
    takes = kernels()["linear"].takes
    assert takes is not None
    assert takes(x, weights[0], biases[0]) == "no copy of its weight is kept"
    prepacked.tell(weights[:1])
    assert takes(x, weights[0], biases[0]) is None


def test_a_program_without_the_pass_keeps_none(used: list[str]) -> None:
    model = mw.compile("pythia-test", mode="inference", without=["pack_weights"])
    model(tokens=torch.arange(64)[None])
    assert not used and not prepacked.known([model.get_parameter("heads.lm.weight")])


def test_only_programs_that_keep_copies_ask_for_them() -> None:
    models = [mw.compile("mudd-pythia-test", mode=mode) for mode in ("inference", "train")]
    asked, bare = (m.programs["forward"].print_readable(print_output=False) for m in models)
    assert "multiway_kernels_linear(" in asked and "multiway_ops_linear(" not in asked
    assert "multiway_ops_linear(" in bare and "multiway_kernels_linear(" not in bare
