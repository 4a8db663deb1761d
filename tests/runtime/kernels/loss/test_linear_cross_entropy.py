"""The vocabulary product with its loss, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import check, draw
from pairs import pairs
from torch import Tensor, nn

from multiway.compiler.ops.cross_entropy import cross_entropy
from multiway.runtime.kernels import kernels
from multiway.runtime.kernels.loss import linear_cross_entropy as loss_module
from multiway.runtime.kernels.loss.linear_cross_entropy import linear_cross_entropy


def reference_loss(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    logits = nn.functional.linear(x, weight, bias)
    return cross_entropy(logits, labels, smoothing=smoothing)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 5 * 11 * 4)  # five rows, or two and a half


@pairs(
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    smoothing=[0.0, 0.1],
    with_bias=[False, True],
    sizes=[((3, 7), 4), ((3, 7), 0), ((2,), 2), ((0,), 0)],
    fixed=[(), (0,), (2,)],
)
def test_loss(
    small_chunks: None,
    dtype: torch.dtype,
    smoothing: float,
    with_bias: bool,
    sizes: tuple[tuple[int, ...], int],
    fixed: tuple[int, ...],
) -> None:
    shape, left_out = sizes
    labels = torch.arange(torch.Size(shape).numel()).mul(3).remainder(11).view(shape)
    labels.view(-1)[:left_out] = -100
    inputs = [draw(*shape, 6, dtype=dtype), labels, draw(11, 6, dtype=dtype)]
    check(
        lambda *x: linear_cross_entropy(*x, smoothing=smoothing),
        lambda *x: reference_loss(*x, smoothing=smoothing),
        [*inputs, draw(11, dtype=dtype)] if with_bias else inputs,
        fixed,
    )


def test_the_logits_never_exist() -> None:
    x, weight = (draw(n, 4).float().requires_grad_() for n in (3000, 30_000))
    labels = torch.zeros(3000, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(x, labels, weight, smoothing=0.0)[0].backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 1.01 * loss_module.CHUNK_BYTES["cpu"] < 3000 * 30_000 * 4 / 5


def test_the_loss_shares_its_weight_with_an_embedding(small_chunks: None) -> None:
    table, words = draw(11, 6), torch.arange(9)

    def tied(compute: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda w: compute(w[words].tanh(), words, w, smoothing=0.0)[0]

    check(tied(linear_cross_entropy), tied(reference_loss), [table])


def test_the_loss_where_tokens_are_not_left_out(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on other devices than the CPU."""
    monkeypatch.setattr(loss_module, "_kept", lambda _: None)
    labels = torch.arange(9) % 11
    labels[2:5] = -100
    check(
        lambda *x: linear_cross_entropy(*x, smoothing=0.1),
        lambda *x: reference_loss(*x, smoothing=0.1),
        [draw(9, 6), labels, draw(11, 6), draw(11)],
    )


def test_the_loss_is_a_well_formed_operator(small_chunks: None) -> None:
    x, weight, bias = (draw(*s).requires_grad_() for s in ((7, 6), (11, 6), (11,)))
    labels = torch.arange(7)
    operator = loss_module._linear_cross_entropy
    torch.library.opcheck(operator, (x, labels, weight, bias, 0.1, True, True, True))
    fixed = weight.detach()
    torch.library.opcheck(operator, (x, labels, fixed, None, 0.0, True, False, False))


def test_the_loss_cannot_be_differentiated_twice() -> None:
    x = draw(7, 6).requires_grad_()
    loss, _ = linear_cross_entropy(x, torch.arange(7), draw(11, 6), smoothing=0.0)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_the_loss_under_autocast() -> None:
    x, weight = draw(7, 6).float().requires_grad_(), draw(11, 6).float()
    with torch.autocast("cpu"):
        loss, _ = linear_cross_entropy(x, torch.arange(7), weight, smoothing=0.0)
        other, _ = reference_loss(x, torch.arange(7), weight, smoothing=0.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, other, atol=1e-2, rtol=1e-2)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == torch.float32


def test_the_loss_leaves_small_logits_to_the_decomposition() -> None:
    takes = kernels()["linear_cross_entropy"].takes
    assert takes is not None
    x, weight = draw(7, 6), draw(11, 6)
    found = takes(x, torch.arange(7), weight, smoothing=0.0)
    assert found == "the logits have 8 MiB or less"
    many = torch.zeros(1 << 18, dtype=torch.int64)
    assert takes(x.expand(1 << 15, 8, 7, 6)[:, :, 0], many, weight, smoothing=0.0) is None
