"""What lowered code calls, and what a kernel may look at when it is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from op_samples import OPS, values_of

import multiway as mw
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.graph.op import Sample
from multiway.compiler.lowering.check import corresponds
from multiway.compiler.lowering.dispatch import _fast, callee, fast, widths_of
from multiway.compiler.pipeline import Options, run
from multiway.compiler.views.report import kernel_use
from multiway.runtime.block import calls_of
from multiway.runtime.kernels import kernels
from multiway.runtime.kernels.kernel import Kernel
from multiway.runtime.model import Model

Replace = Callable[..., Kernel]
OP = "linear_activation"
SIZES = {"B": 1, "T": 6}


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Kernels with other fields, while a test runs."""

    def replace(name: str, **fields: Any) -> Kernel:
        made = dataclasses.replace(kernels()[name], **fields)
        monkeypatch.setitem(kernels(), name, made)  # type: ignore[arg-type]
        return made

    return replace


def fused_graph(name: str) -> LayerGraph:
    return run(mw.build(name, program="forward"), Options())[-1].graph


def test_a_program_calls_the_reference_where_a_kernel_does_not_fit(replaced: Replace) -> None:
    asked = []

    def fits(attrs: Mapping[str, Any], widths: Mapping[str, int]) -> str | None:
        asked.append((dict(attrs), dict(widths)))
        return "an odd number of it"

    def takes(*_: Any, **__: Any) -> str | None:
        raise AssertionError("asked for a call of a node that it does not fit")

    replaced(OP, fits=fits, takes=takes)
    model = mw.compile("pythia-test")
    program = model.programs["forward"]
    blocks = [code for _, code in calls_of(program)]
    called = [n.target for b in blocks for n in b.graph.nodes if n.meta.get("op") == OP]
    assert called == [OPS[OP].public] * 2
    model(tokens=torch.arange(6)[None])
    first, *others = asked
    assert first[0]["kind"] == "gelu" and {"D", "F"} <= set(first[1]) and others
    assert all(type(size) is int for size in first[1].values()) and not {*"BTS"} & set(first[1])
    graph = fused_graph("pythia-test")
    assert corresponds(graph, program)
    assert kernel_use(graph, SIZES)[OP] == {"an odd number of it": 2}


def test_a_program_calls_the_kernel_where_it_fits() -> None:
    op, attrs = OPS["gated_activation"], {"kind": "silu"}
    assert callee(op, attrs, {}) is fast("gated_activation")
    assert callee(op, {"kind": "tanh"}, {}) is op.public
    linear = OPS["linear"]
    assert callee(linear, {}, {}, packed=True) is fast("linear")
    assert callee(linear, {}, {}) is linear.public


def test_numbers_that_a_program_has_for_a_length_are_no_widths() -> None:
    """The image of a model with one size has 17 tokens always: even so they are its length."""
    graph = mw.build("beit3-test", head="vqa", program="forward")
    known = set()
    for record in (each for each in graph if each.op in OPS):
        types = graph.argument_types(record, graph.arguments(record.path))
        known.add(OPS[record.op].sizes(types, record.attrs).get("T"))
        assert not {*"BTS"} & set(widths_of(graph, record))
    assert 17 in known


# While something traces


class Sizeless:
    """What there is of a tensor before anybody knows its sizes."""

    def __init__(self, like: torch.Tensor) -> None:
        self.dtype, self.device, self.is_cpu = like.dtype, like.device, like.is_cpu
        self.requires_grad = like.requires_grad


def sizeless(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [sizeless(each) for each in value]
    return Sizeless(value) if isinstance(value, torch.Tensor) else value


TRACED = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, kernel in kernels().items()
    if kernel.traces is not None
    for i, sample in enumerate(OPS[name].samples)
]


@pytest.mark.parametrize(("name", "sample"), TRACED)
def test_no_size_is_looked_at_while_tracing(
    name: str, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    values = {key: sizeless(each) for key, each in values_of(OPS[name], sample).items()}
    traces = kernels()[name].traces
    assert traces is not None
    reason = traces(**values, **OPS[name].full_attrs(sample.attrs))
    assert reason is None or reason == "a token may go to any number of experts"


@pytest.mark.parametrize(("exporting", "portable"), [(False, False), (True, False), (True, True)])
def test_who_is_asked_while_tracing(
    exporting: bool, portable: bool, replaced: Replace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def told(what: str) -> Callable[..., None]:
        return lambda *_, **__: calls.append(what)

    replaced("mix", run=told("run"), takes=told("takes"), traces=told("traces"), portable=portable)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    _fast.__wrapped__("mix", ())([torch.ones(1, 2, 3)], torch.ones(1, 1))
    assert calls == ([] if exporting and not portable else ["traces", "run"])


def graphs_of(model: Model, program: str, inputs: Callable[[int, int], list[torch.Tensor]]) -> int:
    """How many graphs torch.compile makes of a program for 10 lengths and 3 batches."""
    made = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        made.append(module)
        return module.forward

    torch._dynamo.reset()
    whole = torch.compile(model.programs[program], backend=backend, fullgraph=True, dynamic=True)
    for batch in (2, 3, 4):
        for length in range(5, 15):  # unlike the batches, which torch would take for one number
            whole(*inputs(batch, length))
    return len(made)


def tokens(batch: int, length: int) -> list[torch.Tensor]:
    return [torch.arange(batch * length).view(batch, length) % 50]


@pytest.mark.parametrize("name", ["mudd-pythia-test", "mixtral-test"])
def test_no_length_and_no_batch_is_compiled_for_again(name: str) -> None:
    assert graphs_of(mw.compile(name), "forward", tokens) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mudd-pythia-test", "mixtral-test", "attnres-test", "hc-test"])
def test_nor_for_a_loss(name: str) -> None:
    assert graphs_of(mw.compile(name), "loss", lambda *size: 2 * tokens(*size)) == 1
