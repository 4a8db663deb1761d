"""Spec to a model that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from multiway.compiler.assemble.build import head_of, parameters, program_names
from multiway.compiler.graph.layer_graph import Param
from multiway.compiler.lowering.containers import empty_parameters
from multiway.compiler.lowering.expected import expected_inputs
from multiway.compiler.lowering.lower import lower
from multiway.compiler.pipeline import Options, Stages
from multiway.runtime import memory
from multiway.runtime.measure.collector import resting
from multiway.runtime.model import Model, Programs
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
    stages = Stages(spec, options, taps)

    @resting()
    def program(name: str, parts: nn.Module) -> fx.GraphModule:
        graph = stages[name][-1].graph
        return lower(graph, parts, kernels=options is not None)

    return Model(
        spec=spec,
        containers=containers,
        programs=Programs(program_names(spec), program, containers),
        expected=lambda name: expected_inputs(spec, stages[name][0].graph),
        balance_rates=rates,
        answer=head_of(spec).answer(spec),
    )


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
