"""In float32 and bfloat16 a fused program is about as far from float64 as the reference is.

Outputs of main programs, and every gradient of programs with a loss. The error of one step says
little about a gradient or a loss: where one rounding decides, its size is chance. So several draws
are compared, output by output and parameter by parameter, by the norms of their errors, and in the
geometric mean: a token whose expert a rounding decides is off by far in one draw, on either side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fused import heads, outputs, settings, sizes_for
from hypothesis import given
from members import in_turn, members
from rounding import margin
from strategies import random_inputs, specs
from test_properties import some_sizes
from torch import Tensor

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.runtime.model import Model

DRAWS = 8
TERMS = 64  # of most sums in small members
FACTOR = 2.0  # over these draws chance makes up to 1.4 times
TRAINED = [
    each
    for each in members(apart=False)
    if "loss" in program_names(mw.load(each.values[0]).for_head(each.values[1]))
]
DTYPES = [torch.float32, torch.bfloat16]

Gradients = dict[str, Tensor]


@in_turn(members(apart=False), dtype=DTYPES)
def test_outputs_are_no_farther_from_float64_than_eager(
    name: str, head: str, dtype: torch.dtype
) -> None:
    spec = mw.load(name).for_head(head)
    program = program_names(spec)[0]
    graph = mw.build(spec, program=program)
    eager, fused = (mw.compile(spec, dtype=dtype, fuse=fuse) for fuse in (False, True))
    exact = mw.compile(spec, dtype=torch.float64, fuse=False)
    exact.load_state_dict(fused.state_dict())
    logs: dict[int, float] = defaultdict(float)
    for seed in range(DRAWS // 2):
        given = random_inputs(graph, sizes_for(graph), dtype=dtype, seed=seed)
        with torch.no_grad():
            found = [outputs(model, program, given) for model in (eager, fused)]
            want = outputs(exact, program, cast(given, torch.float64))
        for i, (*ours, right) in enumerate(zip(*found, want, strict=True)):
            if right.is_floating_point():
                floor = margin(dtype, terms=TERMS, size=float(right.norm())) + 1e-30
                by_eager, by_fused = (
                    float((each.double() - right).norm()) + floor for each in ours
                )
                logs[i] += math.log(by_fused / by_eager) / (DRAWS // 2)
    check({f"output {i}": math.exp(each) for i, each in logs.items()})


def cast(given: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


def distances(spec: mw.Spec, graph: LayerGraph, sizes: Any, dtype: torch.dtype) -> dict[str, float]:
    """By parameter, how many times as far from float64 its gradient is fused as eager: the
    geometric mean over the draws.

    To both errors is added what rounding a few numbers gives: of the gradient itself, and a little
    of that of all parameters. A gradient that is 0 but for rounding, as that of a key's bias is
    with softmax, is noise, and beside the others no more than that.
    """
    models = {
        "right": mw.compile(spec, dtype=torch.float64, fuse=False),
        "eager": mw.compile(spec, dtype=dtype, fuse=False),
        "fused": mw.compile(spec, dtype=dtype),
    }
    start = {name: value.clone() for name, value in models["right"].state_dict().items()}
    logs = dict.fromkeys(start, 0.0)
    for seed in range(DRAWS):
        weights = {name: value.to(dtype) for name, value in moved(start, seed)}
        given = random_inputs(graph, sizes, dtype=dtype, seed=seed)
        found = {side: gradients(model, weights, given) for side, model in models.items()}
        whole = sum(float(each.square().sum()) for each in found["right"].values()) ** 0.5
        for name, right in found["right"].items():
            size = float(right.norm()) + whole / 64
            floor = margin(dtype, terms=TERMS, size=size) + 1e-30
            fused, eager = (
                float((found[side][name] - right).norm()) + floor for side in ("fused", "eager")
            )
            logs[name] += math.log(fused / eager) / DRAWS
    return {name: math.exp(each) for name, each in logs.items()}


def moved(start: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Weights off where they start: behind many that start at 0 nothing could be seen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in start.items():
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        yield name, value + 0.1 * noise


def gradients(model: Model, weights: Mapping[str, Tensor], given: Mapping[str, Any]) -> Gradients:
    """Gradients of the loss, in float64."""
    dtype = next(model.parameters()).dtype
    model.load_state_dict({name: value.to(dtype) for name, value in weights.items()})
    model.zero_grad(set_to_none=True)
    model.loss(**cast(given, dtype))[0].backward()
    return {
        name: torch.zeros_like(p, dtype=torch.float64) if p.grad is None else p.grad.double()
        for name, p in model.named_parameters()
    }


def check(found: Mapping[str, float]) -> None:
    far = {name: round(each, 2) for name, each in found.items() if each > FACTOR}
    assert not far, f"times as far from float64 as eager: {far}"


@in_turn(TRAINED, dtype=DTYPES)
def test_gradients_are_no_farther_from_float64_than_eager(
    name: str, head: str, dtype: torch.dtype
) -> None:
    spec = mw.load(name).for_head(head)
    graph = mw.build(spec, program="loss")
    check(distances(spec, graph, sizes_for(graph), dtype))


@given(specs())
@settings(4)
def test_gradients_of_random_specs_are_no_farther_from_float64_than_eager(
    spec: dict[str, Any],
) -> None:
    for each in heads(spec):
        if "loss" in program_names(each):
            graph = mw.build(each, program="loss")
            for dtype in DTYPES:
                check(distances(each, graph, some_sizes(graph, 4), dtype))
