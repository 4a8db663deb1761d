"""act(gate) * x in C, alone and inside experts, against torch: float64 decides."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from comparing import check, draw
from rounding import assert_near, unit
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from multiway.compiler.fusions.gated_activation import KINDS as FUSED
from multiway.compiler.graph.registry import registry
from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.experts import gated as gated_experts
from multiway.runtime.kernels.experts import ops as experts
from multiway.runtime.kernels.rows import gated_compiled
from multiway.runtime.kernels.rows.gated import FEWEST, gated_activation
from multiway.runtime.kernels.rows.gated_compiled import KINDS

pytestmark = pytest.mark.skipif(
    native.library("gated") is None, reason=f"no C kernel: {native.refused('gated')}"
)
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu}


def reference(x: Tensor, gate: Tensor, *, kind: str) -> Tensor:
    return ACTIVATIONS[kind](gate) * x


def test_what_is_fused_is_what_there_is() -> None:
    assert set(KINDS) == set(FUSED) == set(ACTIVATIONS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 33), (70, 17), (7,), (0, 8), (3, 704)])
@pytest.mark.parametrize("fixed", [(), (0,), (1,)])
def test_values_and_gradients(fixed: tuple[int, ...], shape: tuple[int, ...], kind: str) -> None:
    inputs = [draw(*shape, dtype=torch.float32), 4 * draw(*shape, dtype=torch.float32, seed=1)]
    check(partial(gated_activation, kind=kind), partial(reference, kind=kind), inputs, fixed)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_every_magnitude_are_as_near_as_torchs(kind: str) -> None:
    powers = torch.logspace(-44, 38, 1 << 14, dtype=torch.float64).float()
    gate = torch.cat([torch.linspace(-120, 120, 1 << 18), powers, -powers])[None]
    one = torch.ones_like(gate)

    def results(function: object, dtype: torch.dtype) -> list[Tensor]:
        leaves = [one.to(dtype).requires_grad_(), gate.to(dtype).requires_grad_()]
        y = function(*leaves, kind=kind)  # type: ignore[operator]
        return [y.detach(), *torch.autograd.grad(y, leaves, one.to(dtype))]

    exact = results(reference, torch.float64)
    found, torchs = results(gated_activation, torch.float32), results(reference, torch.float32)
    for ours, theirs, truth in zip(found, torchs, exact, strict=True):
        a, b = (ours.double() - truth).abs(), (theirs.double() - truth).abs()
        near = gate.abs() < 1e3  # beyond, a rounding of the result is all there is
        rounded = unit(torch.float32) * truth[near].abs().max()
        assert a[near].max() <= 2.5 * b[near].max() + rounded
        assert (a <= 3e-7 * truth.abs() + 1e-6 * (gate.abs() < 20) + 1e-35).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_passes(kind: str) -> None:
    gate = torch.tensor([[math.nan, 1.0, math.inf, 2.0] * 9])
    x = torch.tensor([[1.0, math.nan, 1.0, math.inf] * 9])
    found = gated_activation(x, gate, kind=kind)
    assert found[:, 0::4].isnan().all() and found[:, 1::4].isnan().all()
    assert (found[:, 2::4] == math.inf).all() and (found[:, 3::4] == math.inf).all()


def test_situations_of_autograd() -> None:
    x, gate = (draw(8, 5, dtype=torch.float32, seed=s).requires_grad_() for s in (1, 2))
    call = partial(gated_activation, kind="silu")
    y = call(x, gate)
    seed = torch.ones(()).expand(8, 5)  # not contiguous, and not to be written
    first = torch.autograd.grad(y, (x, gate), seed, retain_graph=True)
    given = torch.ones(8, 5)
    second = torch.autograd.grad(y, (x, gate), given)
    assert torch.equal(given, torch.ones(8, 5))
    again = torch.autograd.grad(checkpoint(call, x, gate, use_reentrant=False), (x, gate), given)
    for each in zip(first, second, again, strict=True):
        assert torch.equal(each[0], each[1]) and torch.equal(each[0], each[2])
    with torch.inference_mode():
        assert torch.equal(call(x, gate), y)
    check(call, partial(reference, kind="silu"), [x.detach().t(), gate.detach().t()])
    (slope,) = torch.autograd.grad(call(x, gate).square().sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_rows(kind: str) -> None:
    x, gate, grad = (draw(60, 19, dtype=torch.float32, seed=s) for s in range(3))
    weights = draw(60, dtype=torch.float32, seed=3)
    leaves = [each.double().requires_grad_() for each in (x, gate, weights)]
    y = leaves[2][:, None] * reference(*leaves[:2], kind=kind)
    exact = [y, *torch.autograd.grad(y, leaves, grad.double())]
    kept = grad.clone()
    back = gated_compiled.backward(kind, x, gate, weights, kept, again=True)
    assert torch.equal(kept, grad) and back.y is not None and back.weights is not None
    assert torch.equal(gated_compiled.forward(kind, x, gate, weights), back.y)
    own = gated_compiled.backward(kind, x, gate, weights, kept, again=False, own=True)
    assert own.x is kept and torch.equal(own.x, back.x) and own.y is None
    for found, truth in zip((back.y, back.x, back.gate, back.weights), exact, strict=True):
        assert_near(found, truth.detach(), terms=19)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [(), (0,), (1,), (2, 3), (4,)])
def test_experts_in_one_step(
    fixed: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x, gates, up, down, gate: float32, where experts are one step of autograd."""
    mask = torch.zeros(3, 7, 4).scatter(-1, draw(3, 7, 4).topk(2).indices, 1.0)
    mask[..., 3] = 0  # nobody goes there
    shapes = ((3, 7, 6), (3, 7, 4), (4, 5, 6), (4, 4, 5), (4, 5, 6))
    inputs = [draw(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]
    attrs = {"count": 4, "most": 2, "norm": "", "eps": 1e-5, "kind": kind}
    calls = []
    monkeypatch.setattr(
        gated_experts,
        "gated_ffn",
        lambda *a, _f=gated_experts.gated_ffn, **k: calls.append(1) or _f(*a, **k),
    )
    both = experts.moe_ffn, registry()["moe_ffn"].reference
    ours, theirs = (
        lambda x, gates, *rest, _f=f: _f(x, gates * mask.to(gates), *rest, **attrs) for f in both
    )
    check(ours, theirs, inputs, fixed)
    assert calls


def test_what_it_does_not_take() -> None:
    kernel = kernels()["gated_activation"]
    takes = kernel.takes
    assert takes is not None
    x = torch.zeros(FEWEST // 8, 8)
    assert takes(x, x, kind="silu") is None
    assert kernel.fits({"kind": "relu"}, {}) == "activation relu"
    assert kernel.fits({"kind": "gelu"}, {}) is None
    assert takes(x[1:], x[1:], kind="silu") == "x has fewer than 32768 numbers"
    assert takes(x.double(), x, kind="silu") == "types are not all float32: torch.float64"
    assert takes(x, x.double(), kind="silu") == "types are not all float32: torch.float32"
    assert takes(x.to("meta"), x, kind="silu") == "x is on meta"
    with native.disabled():
        assert takes(x, x, kind="silu") == "C kernels are switched off"
