"""Attention over depth: the ops against the formula written as einsums, and recorded values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multiway.compiler.op import registry

double = torch.float64
GOLDEN = Path(__file__).parents[3] / "shared" / "golden_wirings" / "attnres" / "full"


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=double)


def op(name: str, *args: Any, **kwargs: Any) -> Any:
    return registry()[name].reference(*args, **kwargs)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def routed(stack: Tensor, query: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Weights [B, T, G, L] and their average [B, T, D] of stack [L, B, T, D], as einsums."""
    length = stack.norm(dim=-1, keepdim=True) / stack.shape[-1] ** 0.5
    scale = torch.hypot(length, torch.full_like(length, eps**0.5))
    unit = (stack / scale).unflatten(-1, (groups, -1))
    scores = torch.einsum("lbtge,ge->btgl", unit, query.view(groups, -1))
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    parts = stack.unflatten(-1, (groups, -1))
    return weights, torch.einsum("btgl,lbtge->btge", weights, parts).flatten(-2)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_router_is_a_softmax_over_scores_of_normalised_sources(
    groups: int, weighted: bool
) -> None:
    history = [random(2, 3, 12, seed=i) * (1 + i) for i in range(5)]
    query, weight = random(12, seed=7), random(12, seed=8) if weighted else None
    whole = query * weight if weight is not None else query
    weights, average = routed(torch.stack(history), whole, groups, 1e-2)
    found = op("depth_router", history, query, weight, groups=groups, eps=1e-2)
    close(found, weights)
    close(op("mix_groups", history, found), average)
    if groups == 1:
        close(op("mix", history, found)[0], average)


def test_one_group_is_a_mix_of_one_way() -> None:
    history = [random(2, 3, 4, seed=i) for i in range(3)]
    for weights in (random(2, 3, 1, 3), random(1, 3)):
        close(op("mix_groups", history, weights), op("mix", history, weights)[0])


def test_groups_weigh_neighbouring_channels() -> None:
    history = [torch.full((1, 1, 6), float(i)) for i in (1, 10)]
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert op("mix_groups", history, weights).flatten().tolist() == [1, 1, 10, 10, 11, 11]


def test_a_fresh_router_averages_and_one_source_has_weight_one() -> None:
    history, query = [random(1, 2, 4, seed=i) for i in range(4)], torch.zeros(4, dtype=double)
    close(
        op("depth_router", history, query, groups=2, eps=1e-6),
        torch.full((1, 2, 2, 4), 0.25, dtype=double),
    )
    one = op("depth_router", history[:1], random(4), groups=1, eps=1e-6)
    assert torch.equal(one, torch.ones(1, 2, 1, 1, dtype=double))


def test_scores_of_narrow_sources_are_computed_in_float32() -> None:
    history = [(random(1, 2, 64, seed=i) * 30).bfloat16() for i in range(4)]
    query = random(64, seed=9).bfloat16()
    found = op("depth_router", history, query, groups=1, eps=1e-6)
    wide = op("depth_router", [x.float() for x in history], query.float(), groups=1, eps=1e-6)
    assert torch.equal(found, wide.bfloat16())


@pytest.mark.skipif(not GOLDEN.exists(), reason="no recorded values beside this checkout")
def test_recorded_weights_and_reads_come_out() -> None:
    from safetensors.torch import load_file

    want, given = (load_file(GOLDEN / f"{name}.safetensors") for name in ("outputs", "weights"))
    history = [want["x0"]]
    for number in range(7):
        router = f"connection.routers.{number}."
        query, weight = given[f"{router}query"], given[f"{router}key_norm_weight"]
        weights = op("depth_router", history, query, weight, groups=1, eps=1e-6)
        alpha = want[f"alpha.{number}"]  # [L, B, T, G]
        torch.testing.assert_close(weights, alpha.permute(1, 2, 3, 0), rtol=1e-5, atol=3e-6)
        read = want[f"read.{number}"] if number < 6 else want["wired"]
        for name in ("mix", "mix_groups"):
            found = op(name, history, weights)
            found = found[0] if isinstance(found, tuple) else found
            torch.testing.assert_close(found, read, rtol=1e-5, atol=1e-5)
        history = [*history, want[f"out.{number}"]] if number < 6 else history
