"""What holds for every spec: random whole specs through building, lowering, running, decoding.

The fuzz tests at the end are the same properties on many more specs, other ones on each run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from strategies import CONTEXT, HEADS, random_inputs, randomise, right_padded, sizes_of, specs

import multiway as mw
from multiway.compiler.build import program_names
from multiway.compiler.correspond import corresponds
from multiway.compiler.graph import LayerGraph
from multiway.compiler.heads import kinds
from multiway.compiler.printing import to_text
from multiway.compiler.types import Tensor, number
from multiway.compiler.verify import verify
from multiway.runtime.model import Model, new_cache

Mappings = dict[str, Any]
SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large]
PHASES = [Phase.explicit, Phase.generate, Phase.shrink]  # explaining a failure takes minutes


def settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples, suppress_health_check=SLOW_DRAWS, phases=PHASES
    )


def loaded(spec: Mappings) -> mw.Spec:
    """The spec, printed as YAML should the test fail."""
    hypothesis.note(yaml.safe_dump(spec, sort_keys=False))
    return mw.load(spec)


def heads(spec: Mappings) -> Iterator[mw.Spec]:
    """The spec as each of its heads has it."""
    whole = loaded(spec)
    for name in whole.heads:
        yield whole.for_head(name)


def model_of(spec: mw.Spec) -> Model:
    model = mw.compile(spec, dtype=torch.float64)
    randomise(model)
    return model


def some_sizes(graph: LayerGraph, length: int) -> dict[str, int]:
    """Numbers for the named sizes of a program, all different where they may be."""
    found = {"B": 2}
    for i, name in enumerate(n for n in sizes_of(graph) if n not in ("B", "S")):
        found[name] = length + i
    return {**found, "S": length + 3}


def flat(value: Any) -> list[Any]:
    """Tensors of a program's result, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flat(item)]
    return [value]


def check_graph(spec: Mappings) -> None:
    for each in heads(spec):
        for program in program_names(each):
            graph = mw.build(each, program=program)
            verify(graph)
            assert to_text(graph) == to_text(mw.build(each, program=program))
            plain = graph.to_json()
            again = LayerGraph.from_json(json.loads(json.dumps(plain)))
            assert again.to_json() == plain
            assert to_text(again, fold=False) == to_text(graph, fold=False)
            assert again.params == graph.params
            verify(again)


def check_run(spec: Mappings, length: int) -> None:
    for each in heads(spec):
        model = model_of(each)
        for program in program_names(each):
            graph = mw.build(each, program=program)
            module = model.programs[program]
            assert corresponds(graph, module)
            sizes = some_sizes(graph, length)
            with torch.no_grad():
                result = model.run(program, **random_inputs(graph, sizes))
            wanted = [graph.type(v) for v in graph.sources(graph.output().path).values()]
            got = flat(result)
            assert len(got) == len(wanted)
            for tensor, kind in zip(got, wanted, strict=True):
                assert isinstance(kind, Tensor)
                assert list(tensor.shape) == [number(d, sizes) for d in kind.shape]
                assert tensor.is_floating_point() == (kind.dtype == "float")
                assert torch.isfinite(tensor).all()


def check_gradients(spec: Mappings, length: int) -> None:
    for each in heads(spec):
        programs = program_names(each)
        program = "loss" if "loss" in programs else programs[0]
        model, graph = model_of(each), mw.build(each, program=program)
        result = flat(model.run(program, **random_inputs(graph, some_sizes(graph, length))))[0]
        result.sum().backward()
        read = {path for record in graph for path in record.params.values()}
        own = dict(model.named_parameters())
        assert read <= own.keys()
        for path, parameter in own.items():
            if path in read:
                assert parameter.grad is not None, path
                assert torch.isfinite(parameter.grad).all(), path
            else:
                assert parameter.grad is None, path


@given(specs())
@settings(60)
def test_every_program_builds_verifies_prints_and_survives_json(spec: Mappings) -> None:
    check_graph(spec)


@given(specs(), st.integers(1, 5))
@settings(40)
def test_every_program_runs_as_its_graph_says(spec: Mappings, length: int) -> None:
    check_run(spec, length)


@given(specs(), st.integers(1, 5))
@settings(40)
def test_every_parameter_that_is_read_gets_a_gradient(spec: Mappings, length: int) -> None:
    check_gradients(spec, length)


@pytest.mark.parametrize("kind", sorted(kinds().classes))
def test_the_strategy_draws_every_head_kind(kind: str) -> None:
    assert kind in HEADS, f"tests/strategies.py does not know the head kind {kind!r}"

    def has_it(spec: Mappings) -> bool:
        return any(head["kind"] == kind for head in spec["heads"].values())

    hypothesis.find(specs(), has_it, settings=hypothesis.settings(settings(200), database=None))
