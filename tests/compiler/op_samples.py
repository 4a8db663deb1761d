"""Arguments for ops, drawn for the samples of their records, and what a reference makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multiway.compiler.graph.op import Op, Sample
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.signature import Slot
from multiway.compiler.graph.types import History, Sizes, Tensor, Type

OPS = registry()
double = torch.float64


def types_of(op: Op, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Types for the shapes of a sample."""
    return {slot.name: type_of(slot, shapes[slot.name]) for slot in slots(op, shapes)}


def slots(op: Op, shapes: Mapping[str, Any]) -> list[Slot]:
    assert set(shapes) <= {slot.name for slot in op.parsed.inputs}
    return [slot for slot in op.parsed.inputs if slot.name in shapes]


def type_of(slot: Slot, shape: Any) -> Type | list[Type]:
    if slot.kind == "sizes":
        return Sizes(tuple(shape))
    if slot.kind == "list":
        return History(len(shape), tuple(shape[0]))
    dtype = "float" if slot.kind == "any" else slot.kind
    if slot.variadic:
        return [Tensor(tuple(each), dtype) for each in shape]  # type: ignore[arg-type]
    return Tensor(tuple(shape), dtype)  # type: ignore[arg-type]


def values_of(op: Op, sample: Sample, *, seed: int = 0, dtype: torch.dtype = double) -> Any:
    """Random arguments by name for a sample."""
    generator = torch.Generator().manual_seed(seed)

    def one(kind: str, shape: Sequence[int]) -> torch.Tensor:
        if kind == "int":
            return torch.randint(0, sample.below, shape, generator=generator)
        if kind == "bool":
            return torch.rand(shape, generator=generator) < 0.5
        return torch.randn(shape, generator=generator, dtype=dtype)

    def fixed(kind: str, value: Any) -> torch.Tensor:
        return torch.tensor(value, dtype={"int": torch.int64, "bool": torch.bool}.get(kind, dtype))

    found: dict[str, Any] = {}
    for slot in slots(op, sample.shapes):
        # A value that the sample fixes stands in the place of a shape to draw.
        make = fixed if slot.name in sample.values else one
        given = sample.values.get(slot.name, sample.shapes[slot.name])
        if slot.kind == "sizes":
            found[slot.name] = list(given)
        elif slot.kind == "list" or slot.variadic:
            found[slot.name] = [make(slot.kind, each) for each in given]
        else:
            found[slot.name] = make(slot.kind, given)
    return found


def run(op: Op, sample: Sample, values: Mapping[str, Any]) -> list[Any]:
    """The outputs of the reference, one after the other. What is random is the same each time."""
    torch.manual_seed(0)
    result = op.reference(**values, **op.full_attrs(sample.attrs))
    several = len(op.parsed.outputs) > 1 or op.parsed.outputs[0].mark != ""
    return list(result) if several else [result]


def tensors(values: Any) -> list[torch.Tensor]:
    """Every tensor in a nest of lists and mappings."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, Mapping):
        return [t for value in values.values() for t in tensors(value)]
    if isinstance(values, (list, tuple)):
        return [t for value in values for t in tensors(value)]
    return []


def floats(values: Any) -> list[torch.Tensor]:
    return [t for t in tensors(values) if t.is_floating_point()]


def replaced(values: Any, given: list[torch.Tensor]) -> Any:
    """The same nest with its float tensors taken from a list, which is used up."""
    if isinstance(values, torch.Tensor):
        return given.pop(0) if values.is_floating_point() else values
    if isinstance(values, Mapping):
        return {name: replaced(value, given) for name, value in values.items()}
    if isinstance(values, list):
        return [replaced(value, given) for value in values]
    return values
