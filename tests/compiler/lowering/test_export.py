"""Lowered programs export and compile whole, with batch and length left free."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from members import members

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.runtime.kernels.rows.activations import FEWEST, activate
from multiway.runtime.model import Model
from multiway.runtime.tasks.random_inputs import random_inputs
from multiway.specs.checks.routing import routings

LIMITS = {"B": (1, 64), "T": (2, 60), "S": (1, 200)}


def programs() -> list[Any]:
    """Every program of every member; not slow are the main one and decoding, once for a kind of
    head, with experts and without."""
    found: list[Any] = []
    seen: set[Any] = set()
    for each in members():
        name, head = each.values
        spec = mw.load(name).for_head(head)
        names = program_names(spec)
        for program in names:
            main = program in (names[0], "decode")
            aspects = {(program, spec.head.kind), (program, bool(routings(spec)))}
            marks = () if main and aspects - seen else (pytest.mark.slow,)
            seen |= aspects if main else set()
            found.append(pytest.param(name, head, program, marks=marks))
    return found


def small(name: str, head: str) -> Model:
    return mw.compile(name, head=head, set={"depth": 2})


def free_sizes(model: Model, program: str) -> tuple[Any, ...]:
    """Every named size of the inputs as a torch.export dimension."""
    dims = {n: torch.export.Dim(n, min=low, max=high) for n, (low, high) in LIMITS.items()}

    def one(shape: tuple[int | str, ...]) -> dict[int, Any]:
        return {i: dims[size] for i, size in enumerate(shape) if isinstance(size, str)}

    return tuple(
        [one(shape) for shape in each.shapes] if each.many else one(each.shape)
        for each in model.expected(program)
    )


def longer(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The same inputs with one more row: another batch size than the one exported."""

    def grown(value: Any) -> Any:
        return (
            [grown(v) for v in value] if isinstance(value, list) else torch.cat([value, value[:1]])
        )

    return tuple(grown(value) for value in inputs.values())


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in flat(item)]


@pytest.mark.parametrize(("name", "head", "program"), programs())
def test_export_leaves_batch_and_length_free(name: str, head: str, program: str) -> None:
    model = small(name, head)
    module, inputs = model.programs[program], random_inputs(model, program)
    exported = torch.export.export(
        module, tuple(inputs.values()), dynamic_shapes=free_sizes(model, program), strict=False
    )
    for given in (tuple(inputs.values()), longer(inputs)):
        results = []
        for run in (exported.module(), module):
            torch.manual_seed(0)  # for the jitter of routers
            results.append(flat(run(*given)))
        got, want = results
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("name", "head"), [("mudd-pythia-test", "lm"), ("beit3-test", "vqa")])
def test_the_whole_program_is_one_graph_for_dynamo(name: str, head: str) -> None:
    model = small(name, head)
    inputs = tuple(random_inputs(model, "forward").values())
    compiled = torch.compile(
        model.programs["forward"], fullgraph=True, backend="eager", dynamic=True
    )
    torch.testing.assert_close(compiled(*inputs), model.programs["forward"](*inputs))


@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_activations_of_few_numbers_export_for_many(kind: str) -> None:
    """Kernels for many numbers are chosen at a call, never by the sizes of an example."""

    class Activation(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return activate(x, kind)

    rows = torch.export.Dim("rows", min=1, max=1 << 16)
    exported = torch.export.export(
        Activation(), (torch.randn(3, 512),), dynamic_shapes=({0: rows},), strict=False
    )
    many = torch.randn(FEWEST // 512 + 1, 512)
    torch.testing.assert_close(exported.module()(many), activate(many, kind))
