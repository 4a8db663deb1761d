"""Spec to a model that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from multiway.compiler.assemble.build import head_of, parameters, program_names
from multiway.compiler.graph.layer_graph import Param
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.lowering.containers import empty_parameters
from multiway.compiler.lowering.expected import expected_inputs
from multiway.compiler.lowering.lower import lower
from multiway.compiler.passes.drop_dead import drop_dead
from multiway.compiler.pipeline import Options, Stages
from multiway.runtime import memory
from multiway.runtime.inputs import Expected
from multiway.runtime.measure.collector import resting
from multiway.runtime.model import Model
from multiway.runtime.parameters.initialise import initialise
from multiway.specs.errors import MultiwayError
from multiway.specs.spec import Spec


def compile_spec(
    spec: Spec,
    *,
    head: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    taps: Sequence[str] = (),
    fill: bool = True,
    options: Options | None = None,
) -> Model:
    """A model with initial weights. Raises MultiwayError.

    fill: False leaves the weights as the allocator gave them, for a file to be read into.
    taps: further values that the main programs put out; see LayerGraph.resolve.
    options: those of the pipeline; None for the reference, which no pass has touched.
    """
    if not spec.head_name or head is not None:
        spec = spec.for_head(head)
    device = torch.device(device)
    declared = parameters(spec)
    _check_memory(declared, device, dtype)
    rates = {path: param.rate for path, param in declared.items() if param.rate is not None}
    with torch.inference_mode(False):  # parameters that can be trained, and whose writes count
        containers = empty_parameters(
            {path: param.shape for path, param in declared.items()},
            device=device,
            dtype=dtype,
            wide=rates,  # bfloat16 would round steps of 0.001 away
        )
    if fill:
        _initialise(containers, declared, device, seed)
    if options is not None and options.mode == "inference":
        containers.requires_grad_(False)
    for path in rates:
        containers.get_parameter(path).requires_grad_(False)
    return Model(
        spec=spec,
        containers=containers,
        source=Source(spec, options, tuple(taps)),
        balance_rates=rates,
        answer=head_of(spec).answer(spec),
    )


class Source:
    """What a model asks for its programs. It pickles: what is made, is made again."""

    def __init__(self, spec: Spec, options: Options | None, taps: tuple[str, ...]) -> None:
        self.spec, self.options, self.taps = spec, options, taps
        self.stages = Stages(spec, options, taps)
        self._expected: dict[str, Sequence[Expected]] = {}

    def __reduce__(self) -> Any:
        return Source, (self.spec, self.options, self.taps)

    def names(self) -> tuple[str, ...]:
        return program_names(self.spec)

    @resting()
    def program(self, name: str, containers: nn.Module) -> fx.GraphModule:
        return lower(self.stages[name][-1].graph, containers, kernels=self.options is not None)

    def expected(self, name: str) -> Sequence[Expected]:
        if name not in self._expected:
            self._expected[name] = expected_inputs(self.spec, self.stages[name][0].graph)
        return self._expected[name]

    def keep_least(self) -> None:
        if self.options is None or not self.options.plans_memory:
            raise MultiwayError.one(
                "no-memory-plan",
                f"{self.spec.name} is compiled without a plan of what backward keeps",
                place="gradient_checkpointing_enable",
                expected="a model with fuse=True, mode='train' and the pass plan_memory",
            )
        if self.options.memory_budget is None:
            self.options = dataclasses.replace(self.options, memory_budget=0)
            self.stages = Stages(self.spec, self.options, self.taps)

    def readers(self, name: str, *, needed: bool = False) -> Mapping[str, str]:
        graph = self.stages[name][0].graph
        if needed:  # of what runs: in the graph as built, modalities are joined that are not then
            graph = drop_dead(self.stages[name][-1].graph, Tally())
        found: dict[str, str] = {}
        for record in graph:
            for path in record.params.values():
                found.setdefault(path, record.op)
        return found


def _initialise(
    containers: nn.Module, declared: Mapping[str, Param], device: torch.device, seed: int
) -> None:
    generator = torch.Generator(device=device if device.type != "meta" else "cpu")
    generator.manual_seed(seed)
    for path, param in declared.items():
        initialise(containers.get_parameter(path), param.init, generator)


def _check_memory(declared: Mapping[str, Param], device: torch.device, dtype: torch.dtype) -> None:
    """Refuses what cannot fit, before anything is allocated."""
    needed = sum(param.size for param in declared.values()) * dtype.itemsize
    if device.type != "cpu":
        return
    there = memory.total_bytes()
    if there is not None and needed > there:
        raise MultiwayError.one(
            "too-large",
            f"the weights take {needed / 2**30:,.1f} GiB, a process may use {there / 2**30:,.1f}",
            place="compile",
            expected="a smaller model, a narrower dtype, or device='meta' to look at it",
        )
