"""Work grows with the number of nodes, not with its square: calls are counted, no time is taken.

The model is a MUDD one, in which block i reads i + 1 earlier outputs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import multiway as mw
from multiway.compiler.assemble.build import parameters, program_names
from multiway.compiler.graph.layer_graph import LayerGraph, block_of
from multiway.compiler.graph.op import Op
from multiway.compiler.graph.verify import verify
from multiway.compiler.lowering.containers import empty_parameters
from multiway.compiler.lowering.lower import lower
from multiway.compiler.views.picture import to_svg
from multiway.compiler.views.text import to_text

MODEL = "mudd-pythia-2.8b"
SHALLOW, DEEP = 32, 128
MOST = 4.2 / 4  # growth of work over growth of depth: room for what does not depend on depth
PROGRAMS = ("forward", "loss", "prefill", "decode")


def spec_of(depth: int) -> mw.Spec:
    return mw.load(MODEL, set={"depth": depth}).for_head()


def graph_of(depth: int, program: str = "forward") -> LayerGraph:
    return mw.build(spec_of(depth), program=program)


def calls(action: Callable[[], Any]) -> int:
    """How many functions an action calls, Python's own included."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def assert_linear(action: Callable[[int], Callable[[], Any]], *, caches: bool = True) -> None:
    """`action(depth)` prepares what is counted. A first run that fills caches is not counted."""
    counts = []
    for depth in (SHALLOW, DEEP):
        prepared = action(depth)
        if caches:
            prepared()
        counts.append(calls(prepared))
    shallow, deep = counts
    assert deep / shallow <= MOST * DEEP / SHALLOW, f"{shallow:,} calls, then {deep:,}"


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of the methods that touch nodes."""
    found: Counter[str] = Counter()
    for cls, name in ((Op, "types"), (LayerGraph, "add"), (LayerGraph, "sources")):
        original = getattr(cls, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            found[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(cls, name, counted)
    return found


def test_building_verifying_and_printing_visit_every_node_a_fixed_number_of_times(
    counter: Counter[str],
) -> None:
    counts = []
    for depth in (SHALLOW, DEEP):
        counter.clear()
        graph = graph_of(depth)
        assert counter["add"] == len(graph)
        verify(graph)
        to_text(graph)
        to_text(graph, fold=False)
        counts.append(dict(counter))
    for name in ("types", "add", "sources"):
        assert counts[1][name] / counts[0][name] <= MOST * DEEP / SHALLOW, name


def test_the_number_of_nodes_of_a_block_does_not_grow_with_depth() -> None:
    for program in PROGRAMS:
        nodes = Counter(block_of(record.path) for record in graph_of(DEEP, program))
        del nodes[""]
        assert len(nodes) == DEEP
        assert len({nodes[f"blocks.{layer}"] for layer in range(1, DEEP)}) == 1
        assert nodes["blocks.0"] < nodes["blocks.1"]


def test_the_number_of_edges_of_a_block_does_not_grow_with_depth() -> None:
    graph = graph_of(DEEP)
    edges = Counter(block_of(record.path) for record in graph for _ in graph.sources(record.path))
    assert len({edges[f"blocks.{layer}"] for layer in range(1, DEEP)}) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_building_is_linear(program: str) -> None:
    assert_linear(lambda depth: lambda: graph_of(depth, program))


def test_declaring_parameters_is_linear() -> None:
    assert_linear(lambda depth: lambda: parameters(spec_of(depth)))


def test_verifying_is_linear() -> None:
    def prepared(depth: int) -> Callable[[], Any]:
        graph = graph_of(depth)
        return lambda: verify(graph)

    assert_linear(prepared)


@pytest.mark.parametrize("fold", [True, False])
def test_printing_is_linear(fold: bool) -> None:
    def prepared(depth: int) -> Callable[[], Any]:
        graph = graph_of(depth)
        return lambda: to_text(graph, fold=fold)

    assert_linear(prepared)


def test_json_is_linear() -> None:
    def prepared(depth: int) -> Callable[[], Any]:
        graph = graph_of(depth)
        return lambda: LayerGraph.from_json(graph.to_json())

    assert_linear(prepared)


def test_drawing_does_not_grow_with_blocks_of_one_layout() -> None:
    pictures = [to_svg(graph_of(depth)) for depth in (SHALLOW, DEEP)]
    assert pictures[0].count("<rect") == pictures[1].count("<rect")


@pytest.mark.parametrize("program", ["forward", "decode"])
def test_lowering_is_linear(program: str) -> None:
    def prepared(depth: int) -> Callable[[], Any]:
        spec = spec_of(depth)
        graph = mw.build(spec, program=program)
        shapes = {path: param.shape for path, param in parameters(spec).items()}
        meta = torch.device("meta")
        containers = empty_parameters(shapes, device=meta, dtype=torch.float32)
        return lambda: lower(graph, containers)

    assert_linear(prepared, caches=False)


def test_the_programs_are_all_measured() -> None:
    assert program_names(spec_of(2)) == PROGRAMS
