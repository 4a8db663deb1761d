"""Blocks that make values again in backward: which calls run again, what lives on, which bits."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from multiway.runtime.training.recompute import _is_part, _place, recompute

CALLS: list[str] = []
SEEN: dict[str, StorageWeakRef] = {}


class Scale(torch.autograd.Function):
    """As kernels do it: saves an input, its own output and something that is neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        size = x.abs().mean(-1, keepdim=True)
        y = x / size
        ctx.save_for_backward(x, y, size)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, y, size = ctx.saved_tensors
        inner = (grad * y).sum(-1, keepdim=True) / x.shape[-1]
        return (grad - inner * x.sign()) / size


def called(name: str, result: Tensor) -> Tensor:
    CALLS.append(name)
    SEEN.setdefault(name, StorageWeakRef(result.untyped_storage()))  # type: ignore[no-untyped-call]
    return result


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return called("linear", x @ weight.t())


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, dim=-1)  # views at two places of one storage
    called("halves", b)
    return a, b


def gate(a: Tensor, b: Tensor) -> Tensor:
    return called("gate", torch.nn.functional.gelu(a) * b)


def scale(x: Tensor) -> Tensor:
    return called("scale", Scale.apply(x))  # type: ignore[no-untyped-call]


def total(xs: list[Tensor], weight: Tensor) -> Tensor:
    return called("total", sum(x @ weight.t() for x in xs))  # type: ignore[arg-type]


def plus(x: Tensor, y: Tensor) -> Tensor:
    return called("plus", x + y)


def twice_and_thrice(x: Tensor) -> tuple[Tensor, Tensor]:
    """At first both in one storage, later in two, at the same places of them."""
    again = CALLS.count("twice_and_thrice")
    called("twice_and_thrice", x)
    before = torch.full_like(2 * x, torch.nan) if again else 2 * x
    beside = torch.cat([before, 3 * x])
    return 2 * x if again else beside[: len(x)], beside[len(x) :]


class Bits(torch.autograd.Function):
    """A square that saves its input as whole numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.view(torch.int64))
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (bits,) = ctx.saved_tensors
        assert bits.dtype == torch.int64
        return 2 * grad * bits.view(torch.float64)


def bits(x: Tensor) -> Tensor:
    return Bits.apply(x)  # type: ignore[no-any-return, no-untyped-call]


for function in (linear, halves, gate, scale, total, plus, twice_and_thrice, bits):
    fx.wrap(function.__name__)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"up": (12, 6), "down": (6, 6)}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor, others: list[Tensor]) -> Tensor:
        up = linear(x, self.up)
        parts = halves(up)
        gated = gate(parts[0], parts[1])
        scaled = scale(gated)
        return plus(x, total([scaled, gated, x], self.down))


NODES = ("linear", "halves", "gate", "scale", "total", "plus")


def block(again: Collection[str] | None) -> Any:
    module = fx.symbolic_trace(Block())
    names = {n.name for n in module.graph.nodes if n.op == "call_function"}
    assert set(NODES) <= names
    if again is not None:
        recompute(module, again)
    return module


def given() -> Tensor:
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_()


def step(module: Any, x: Tensor) -> list[Tensor]:
    y = module(x, [x])
    grads = torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])
    return [y.detach(), *grads]


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLS.clear()
    SEEN.clear()


SUBSETS = [s for n in range(len(NODES) + 1) for s in itertools.combinations(NODES, n)]


@pytest.mark.parametrize("again", SUBSETS, ids=["-".join(s) or "none" for s in SUBSETS])
def test_every_choice_gives_the_same_bits(again: tuple[str, ...]) -> None:
    want = step(block(None), given())
    got = step(block(again), given())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_what_is_kept_runs_once_and_what_nobody_asks_for_is_not_made_again() -> None:
    module, x = block(("linear", "halves", "gate", "plus")), given()
    y = module(x, [x])
    assert CALLS == ["linear", "halves", "gate", "scale", "total", "plus"]
    CALLS.clear()
    y.sum().backward()
    assert CALLS == ["linear", "halves", "gate"]
    module = block(("scale",))
    y = module(x, [x])
    CALLS.clear()
    y.sum().backward()
    assert CALLS == ["scale"], "the linear before it is kept"


def test_what_is_made_again_does_not_live_until_then_and_what_is_kept_does() -> None:
    gc.collect()
    gc.disable()  # what lives longer than it should must not hide behind cycles
    try:
        alive = {}
        for again in ((), ("gate", "scale")):
            SEEN.clear()
            x = given()
            y = block(again)(x, [x])
            alive[again] = {name for name, seen in SEEN.items() if not seen.expired()}
            frames = sum(type(each).__name__ == "_Frame" for each in gc.get_objects())
            assert frames == bool(again)
            y.sum().backward()
            del y
            assert not any(type(each).__name__ == "_Frame" for each in gc.get_objects())
    finally:
        gc.enable()
    assert "gate" in alive[()]
    assert not alive["gate", "scale"] & {"gate", "scale"}


def test_backward_may_run_twice_and_through_itself() -> None:
    results = []
    for again in (None, ("linear", "halves", "gate", "plus")):
        module, x = block(again), given()
        y = module(x, [x]).sin().sum()
        first = torch.autograd.grad(y, x, retain_graph=True)[0]
        assert torch.equal(first, torch.autograd.grad(y, x)[0])
    plain = nn.Module()
    for again in ((), ("gelu", "mul")):
        graph = fx.Graph()
        a = graph.placeholder("a")
        b = graph.call_function(torch.nn.functional.gelu, (a,))
        c = graph.call_function(torch.mul, (b, b))
        graph.output(graph.call_function(torch.mul, (c, a)))
        module = fx.GraphModule(plain, graph)
        recompute(module, again)
        x = given()
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.sin().sum(), x)[0])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_value_goes_with_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, alive = block(NODES), given(), []
    last = next(n for n in module.graph.nodes if n.name == "plus")

    def look(*args: Tensor) -> Tensor:
        alive.extend(name for name in ("linear", "gate", "scale") if not SEEN[name].expired())
        return plus(*args)

    monkeypatch.setattr(last, "target", look)
    module(x, [x])
    assert {"linear", "gate", "scale"} <= SEEN.keys() and not alive


def test_without_gradients_nothing_is_held() -> None:
    module, x = block(NODES), given()
    with torch.no_grad():
        y = module(x, [x])
    assert not y.requires_grad
    assert torch.equal(y, block(None)(x, [x]))


def test_autocast_of_forward_holds_when_it_is_made_again() -> None:
    found = []
    for again in (None, NODES, ("linear", "halves", "gate")):
        module, x = block(again).float(), given().detach().float().requires_grad_()
        with torch.autocast("cpu"):
            y = module(x, [x])
        found.append(torch.autograd.grad(y.sum(), [x, *module.parameters()]))
    for got in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got, found[0], strict=True))


def test_another_way_in_backward_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = block(NODES), given()
    y = module(x, [x])
    target = next(n for n in module.graph.nodes if n.name == "scale")
    monkeypatch.setattr(target, "target", torch.neg)
    with pytest.raises(RuntimeError, match="scale in Block does not run again as it ran"):
        y.sum().backward()


def test_under_torch_compile_a_block_is_one_checkpoint() -> None:
    module, x = block(("gate", "scale")), given()
    exported = torch.export.export(module, (x, [x]))
    torch.testing.assert_close(exported.module()(x, [x]), block(None)(x, [x]))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = twice_and_thrice(x)
        return gate(a, b)


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return bits(plus(x, x))


@pytest.mark.parametrize(("made", "again"), [(Pair, "twice_and_thrice"), (Squares, "plus")])
def test_what_was_saved_is_made_from_the_value_it_was_a_part_of(
    made: type[nn.Module], again: str
) -> None:
    """Values may share a storage in forward only, and a kept call may see one in another type."""
    x = given()
    (want,) = torch.autograd.grad(made()(x).sum(), x)
    CALLS.clear()
    module = fx.symbolic_trace(made())
    nodes = [n.name for n in module.graph.nodes if n.op == "call_function"]
    recompute(module, [name for name in nodes if name.startswith(again)])
    (found,) = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    ("part", "whole", "inside"),
    [
        (lambda x: x, lambda x: x, True),
        (lambda x: x.flatten(0, 1), lambda x: x, True),
        (lambda x: x.transpose(0, 2)[..., None], lambda x: x, True),
        (lambda x: x[1], lambda x: x, True),
        (lambda x: x[..., :2], lambda x: x, True),
        (lambda x: x[..., 2:].flatten(0, 1), lambda x: x[..., 2:], True),
        (lambda x: x[..., 1:], lambda x: x[..., 2:], False),
        (lambda x: x[..., :2], lambda x: x[..., 2:], False),
        (lambda x: x[..., 2:3], lambda x: x[..., 2:], False),  # who knows: it is kept
        (lambda x: x, lambda x: x[1], False),
        (lambda x: x.clone(), lambda x: x, False),
        (lambda x: x.view(torch.int64), lambda x: x, False),
    ],
)
def test_a_part_of_a_value_holds_nothing_else(part: Any, whole: Any, inside: bool) -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert _is_part(_place(part(x)), _place(whole(x))) == inside
