"""Spec to a model that runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter

import torch
from torch import fx, nn

from multiway.compiler.build import parameters, program_names
from multiway.compiler.graph import INPUT, LayerGraph, Param, Record, Value, grouped
from multiway.compiler.lower import empty_parameters, lower
from multiway.compiler.pipeline import Options
from multiway.compiler.stages import Stages
from multiway.compiler.types import Sym, Tensor, Type, number
from multiway.runtime import memory
from multiway.runtime.collector import resting
from multiway.runtime.initialise import initialise
from multiway.runtime.inputs import Expected
from multiway.runtime.kernels.packed_linear import adjoin, gains_from_adjacency
from multiway.runtime.labels import IGNORED
from multiway.runtime.model import Model, Programs
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
        if options is not None:
            pack(graph, parts)
        return lower(graph, parts, kernels=options is not None)

    return Model(
        spec=spec,
        containers=containers,
        programs=Programs(program_names(spec), program, containers),
        expected=lambda name: expected_inputs(spec, stages[name][0].graph),
        balance_rates=rates,
    )


@torch.inference_mode(False)
@torch.no_grad()
def pack(graph: LayerGraph, containers: nn.Module) -> None:
    """Lays weights that one product reads one behind the other in memory, where that gains.

    Values, names and identities of parameters stay; a parameter that lies beside others already
    stays there. A program may be lowered while gradients are off; its parameters stay trainable.
    """
    for paths in _read_together(graph):
        found = {
            role: [attrgetter(path)(containers) for path in each] for role, each in paths.items()
        }
        if not gains_from_adjacency(found.get("weights", [])):
            continue
        for group in found.values():
            if not all(type(p) is nn.Parameter for p in group):
                continue  # a call with other parameters made the program
            alone = all(p.untyped_storage().nbytes() == p.nbytes for p in group)
            if alone and len({p.dtype for p in group}) == 1 and not group[0].is_meta:
                adjoin(group)


def _read_together(graph: LayerGraph) -> Iterator[dict[str, list[str]]]:
    """Paths of the weights and the biases of linears of one input."""
    for record in graph:
        if record.op == "packed_linear":
            yield {role: list(paths) for role, paths in grouped(record.params).items()}
        elif record.op in ("linears", "joined_linears"):
            xs = graph.arguments(record.path)["xs"]  # of the latter, one for several weights
            for x in dict.fromkeys(xs):
                yield {
                    role: [path for i, path in enumerate(paths) if xs[i % len(xs)] == x]
                    for role, paths in grouped(record.params).items()
                }


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


def expected_inputs(spec: Spec, graph: LayerGraph) -> list[Expected]:
    """What a program takes, for the check of a user's inputs."""
    return [_expected(spec, graph, record) for record in graph if record.op == INPUT]


def _expected(spec: Spec, graph: LayerGraph, record: Record) -> Expected:
    name, types = record.path.split(".", 1)[1], record.outputs
    shapes = tuple(_shape(kind) for kind in types)
    dtypes = tuple(str(kind.dtype) for kind in types if isinstance(kind, Tensor))
    if len(types) > 1:
        return Expected(
            name=name,
            shape=(),
            dtype="float",
            many=len(types),
            shapes=shapes,
            dtypes=dtypes,
            slots=_slots(graph),
        )
    one = functools.partial(Expected, name=name, shape=shapes[0], dtype=dtypes[0])
    if name == "labels":
        return one(below=_classes(graph, record), ends="classes end", ignored=IGNORED)
    if name == "positions":
        text = next(r.path.split(".", 1)[1] for r in graph.inputs())
        return one(below=spec.tokens_of(text), ends="positions end")
    base = name if name in spec.inputs else name.rpartition("_")[0]
    if base not in spec.inputs or dtypes == ("bool",):
        return one()
    source = spec.inputs[base]
    return one(
        below=source.vocab, longest=spec.tokens_of(base) if source.form() != "image" else None
    )


def _slots(graph: LayerGraph) -> Callable[[Mapping[str, int]], int]:
    """How many slots of a cache the tokens of a program take, for sizes by name."""
    tokens = graph.shape(Value("cache.slots"))[1]
    return lambda sizes: number(tokens, sizes)


def _classes(graph: LayerGraph, labels: Record) -> int | None:
    """How many classes labels number, from the loss that reads them."""
    for path, _ in graph.readers(Value(labels.path)):
        if graph.record(path).op == "cross_entropy":
            classes = graph.shape(graph.sources(path)["logits"])[-1]
            return classes if isinstance(classes, int) else None
    return None


def _shape(kind: Type) -> tuple[int | str, ...]:
    assert isinstance(kind, Tensor)
    return tuple(str(d) if isinstance(d, Sym) else d for d in kind.shape)
