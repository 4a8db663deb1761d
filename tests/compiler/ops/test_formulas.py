"""Every primitive op against its formula, and mistakes in every reference that must be seen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from mutants import mutants
from op_samples import OPS, values_of

from multiway.compiler.graph.op import Op, Sample

PRIMITIVE = [op.name for op in OPS.values() if not op.composed]
SEEDS = range(3)

# Mistakes that change no number, by what is said for them: op to the lines that they stand in.
EQUIVALENT: dict[str, dict[str, list[str]]] = {
    "the same axis, counted from the other end": {
        "attention": [
            "scores = wide(query) @ wide(key).transpose(-1, 2) * query.shape[-1] ** (-0.5)",
            "seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()",
        ],
        "balanced_add": ["weights = (2 * wide(balance).softmax(-0)).to(a.dtype)"],
        "binary_cross_entropy": ["return loss * logits.shape[1] if times_classes else loss"],
        "complement_weights": ["return torch.stack([1 - static, static], 1)"],
        "contrastive_loss": ["target = torch.arange(scores.shape[-1], device=scores.device)"],
        "cosine_scores": [
            "found = normalised(wide(x), dim=-1) @ normalised(wide(weight), dim=1).mT / scale",
        ],
        "expert_choice_gates": ["tokens = there.sum(1)[:, None, None]"],
        "join_lanes": ["return lanes.flatten(2)"],
        "limit_experts": [
            "asked = asked.expand(-1, k, -1, -1)"
            ".scatter(-1, order.movedim(1, -1).unsqueeze(-1), True)",
            "tokens = there.sum(1)[:, None, None, None]",
        ],
        "mix_lanes": [
            "terms = [weights[..., j, k, None] * lanes[..., j, :] for j in range(lanes.shape[2])]",
            "return torch.stack(found, 2)",
        ],
        "read_lanes": [
            "terms = [weights[..., i, r, None] * lanes[..., i, :] for i in range(lanes.shape[2])]",
        ],
        "router_statistics": ["dropped = (load - served).sum(1)"],
        "sum_lanes": ["return lanes.sum(2)"],
        "write_lanes": ["return lanes + weights * y.unsqueeze(2)"],
        "write_pieces": ["return lanes + weights * y.unflatten(-1, (lanes.shape[2], -1))"],
    },
    "another axis of the same size": {
        "contrastive_loss": ["target = torch.arange(scores.shape[1], device=scores.device)"],
        "mix_lanes": ["for k in range(weights.shape[-2]):"],
        "patch_embed": [
            "y = torch.nn.functional.conv2d(image, weight, bias, stride=weight.shape[-2])",
        ],
    },
    "what torch does if it is not told": {
        "cosine_scores": [
            "found = normalised(wide(x), dim=-1) @ normalised(wide(weight)).mT / scale",
        ],
        "join_batch": ["return torch.cat(parts)"],
        "limit_experts": ["order = rows.argsort(descending=True, stable=True)[..., :k]"],
        "top_k_gates": ["order = of.sort(descending=True, stable=True).indices[..., :count]"],
    },
    "the CPU keeps the order of equals in any case": {
        "expert_choice_gates": [
            "rank = ranked.argsort(dim=1, descending=True).argsort(1)",
            "rank = ranked.argsort(dim=1, descending=True, stable=False).argsort(1)",
        ],
        "limit_experts": [
            "order = rows.argsort(dim=-1, descending=True)[..., :k]",
            "order = rows.argsort(dim=-1, descending=True, stable=False)[..., :k]",
        ],
        "top_k_gates": [
            "order = of.sort(dim=-1, descending=True).indices[..., :count]",
            "order = of.sort(dim=-1, descending=True, stable=False).indices[..., :count]",
        ],
    },
    "only the shape or the type is read, and all have the same": {
        "depth_router": [
            "return torch.stack(scores, -1).softmax(-1).to(history[1].dtype)",
            "return torch.stack(scores, -1).softmax(-1).to(history[-1].dtype)",
        ],
        "expert_choice_gates": [
            "there = torch.ones_like(scores[..., 1], dtype=torch.bool)"
            " if padding is None else ~padding",
            "there = torch.ones_like(scores[..., -1], dtype=torch.bool)"
            " if padding is None else ~padding",
        ],
        "limit_experts": [
            "there = torch.ones_like(gates[..., 1], dtype=torch.bool)"
            " if padding is None else ~padding",
            "there = torch.ones_like(gates[..., -1], dtype=torch.bool)"
            " if padding is None else ~padding",
        ],
        "mix_groups": [
            "width = history[1].shape[-1] // weights.shape[-2]",
            "width = history[-1].shape[-1] // weights.shape[-2]",
        ],
        "router_statistics": [
            "there = torch.ones_like(gates[..., 0]) if padding is None else ~padding",
            "there = torch.ones_like(gates[..., 1], dtype=torch.bool)"
            " if padding is None else ~padding",
            "there = torch.ones_like(gates[..., -1], dtype=torch.bool)"
            " if padding is None else ~padding",
        ],
    },
    "sums over two axes commute, and the first axis stays the first": {
        "balance_loss": [
            "for axis, how in ((0, layers), (1, rows)):",
            "load, probability, count = (each.sum(axis) for each in (load, probability, count))",
            "load, probability, count = (each.sum(axis, keepdim=False)"
            " for each in (load, probability, count))",
        ],
        "router_statistics": [
            "return (load, torch.zeros_like(load), dropped * 0, dropped * 0, dropped,"
            " there.sum((2, 1)))",
        ],
    },
    "a mask that is the same for every head": {
        "attention": [
            "seen = torch.ones(scores.shape[-3:], dtype=torch.bool, device=scores.device).tril()",
        ],
    },
    "one number was gathered, and those that do not count are multiplied by 0": {
        "cross_entropy": [
            "true = log_p.gather(-1, labels.where(counted, 0)[..., None])[..., -1]",
            "true = log_p.gather(-1, labels.where(counted, 1)[..., None])[..., 0]",
        ],
    },
    "every score is above it": {
        "expert_choice_gates": ["ranked = rows.masked_fill(~there.unsqueeze(-1), -2.0)"],
    },
    "what a token of the prefix sees before it is the prefix": {
        "prefix_mask": [
            "return (prefix[None, :] | (token[None, :] <= token[:, None]) & ~prefix[None, :])"
            "[None, None]",
        ],
    },
    "of one group, one is kept": {"top_k_gates": ["if groups >= 1:", "if groups > 0:"]},
    "a mean of two ranks like their sum": {
        "top_k_gates": [
            "worth = each.amax(-1) if group_by == 'max' else each.topk(2).values.mean(-1)",
        ],
    },
    "nothing beside a sum of gates": {
        "top_k_gates": [
            "TINY = 2e-20",
            "gates = gates / (gates.sum(-1, keepdim=True) - TINY)",
        ],
    },
}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Arguments of an op, and what its formula gives for them."""

    seed: int
    gradients: bool
    arguments: dict[str, Any]
    want: list[np.ndarray]


def arrays(value: Any) -> Any:
    """The same nest with arrays for tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return [arrays(each) for each in value] if isinstance(value, list) else value


def leaves(value: Any) -> list[np.ndarray]:
    """What a reference or a formula gives, one array after the other."""
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [np.asarray(value)]


def draw(op: Op, sample: Sample, seed: int, *, gradients: bool = True) -> Draw:
    assert op.formula is not None
    values, attrs = values_of(op, sample, seed=seed), op.full_attrs(sample.attrs)
    given = {name: arrays(value) for name, value in values.items()}
    if op.random:
        # What is drawn must not depend on how the first input lies in memory.
        first = next(iter(values))
        values[first] = values[first].mT.contiguous().mT
        torch.manual_seed(seed)
        uniform = torch.rand(values[first].shape, dtype=torch.float64).numpy()
        given["uniform"] = uniform if gradients else None
    with np.errstate(all="ignore"):
        want = leaves(op.formula(**given, **attrs))
    return Draw(seed=seed, gradients=gradients, arguments=values | attrs, want=want)


@functools.cache
def draws(name: str) -> list[Draw]:
    """Several draws of every sample; of a random op also one that draws nothing."""
    op = OPS[name]
    found = [draw(op, sample, seed) for sample in op.samples for seed in SEEDS]
    still = [draw(op, sample, 0, gradients=False) for sample in op.samples if op.random]
    return found + still


def agrees(function: Callable[..., Any], drawn: Draw) -> bool:
    """Whether a reference gives what the formula gives, but for rounding in float64."""
    torch.manual_seed(drawn.seed)
    with torch.set_grad_enabled(drawn.gradients):
        found = leaves(arrays(function(**drawn.arguments)))
    return len(found) == len(drawn.want) and all(map(near, found, drawn.want))


def shows(function: Callable[..., Any], drawn: Draw) -> bool:
    """Whether a draw tells a function from the formula; one that raises is told."""
    try:
        return not agrees(function, drawn)
    except Exception:
        return True


def near(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return False
    largest = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
    return np.allclose(a, b, rtol=1e-12, atol=1e-12 * largest, equal_nan=True)


@pytest.mark.parametrize("name", PRIMITIVE)
def test_the_reference_is_its_formula(name: str) -> None:
    assert OPS[name].formula is not None, f"compiler/ops/{name}.py has no formula"
    for drawn in draws(name):
        assert agrees(OPS[name].reference, drawn), f"{name} of {drawn.arguments}"


@pytest.mark.parametrize("name", PRIMITIVE)
def test_samples_show_what_every_attribute_does(name: str) -> None:
    op = OPS[name]
    given = [op.full_attrs(sample.attrs) for sample in op.samples]
    for attr, declared in op.attrs.items():
        values = [attrs[attr] for attrs in given]
        assert any(value != values[0] for value in values), f"{attr} is {values[0]} in all samples"
        changes = any(
            shows(op.reference, replace(drawn, arguments=drawn.arguments | {attr: value}))
            for drawn in draws(name)
            for value in values
        )
        assert changes != declared.hint, f"{attr} changes {'' if changes else 'no '}number"


def survivors(name: str, *, step: int) -> set[str]:
    """The lines of those mistakes that no draw of the op shows, of every step-th mistake."""
    found = set()
    for mutant in itertools.islice(mutants(OPS[name].reference), 0, None, step):
        if not any(shows(mutant.function, drawn) for drawn in draws(name)):
            found.add(mutant.line)
    return found


def excused(name: str) -> set[str]:
    return {line for ops in EQUIVALENT.values() for line in ops.get(name, [])}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRIMITIVE)
def test_some_mistakes_in_the_reference_are_seen(name: str) -> None:
    assert not survivors(name, step=5) - excused(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRIMITIVE)
def test_every_mistake_in_the_reference_is_seen(name: str) -> None:
    # One that is not asks for a sample that shows it. Where there can be none, it is excused above.
    assert survivors(name, step=1) == excused(name)


def test_mistakes_are_made_of_everything() -> None:
    """The mistakes in a small function, all of them."""
    lines = {mutant.line for mutant in mutants(a_function)}
    assert lines == {
        "if not flag:",
        "return x.amin(-1) + SHIFT",
        "return x.amax(-0) + SHIFT",
        "return x.amax(-2) + SHIFT",
        "return x.amax(1) + SHIFT",
        "return x + SHIFT",
        "return -1 + SHIFT",
        "return x.amax(-1) - SHIFT",
        "return x if x.ndim <= 2 else -x",
        "return x if x.ndim < 3 else -x",
        "return x if x.ndim < 1 else -x",
        "return x if not x.ndim < 2 else -x",
        "return x if x.ndim < 2 else x",
        "SHIFT = 1.0",
    }


SHIFT = 0.5


def a_function(x: Any, flag: bool) -> Any:
    if flag:
        return x.amax(-1) + SHIFT
    return x if x.ndim < 2 else -x
