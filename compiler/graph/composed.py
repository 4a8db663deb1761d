"""Fused ops are written as calls of other ops. Run on tensors, such a function is the reference;
run on types, it is the small graph that the fused op replaces.

    from multiway.compiler.graph.registry import call as f
    def linear_cross_entropy(x, labels, weight, bias=None, *, smoothing):
        return f.cross_entropy(f.linear(x, weight, bias), labels, smoothing=smoothing)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiway.compiler.graph.op import Op
from multiway.compiler.graph.types import Type


@dataclass(frozen=True)
class Ref:
    """A value inside a small graph: output `port` of a step, or an input of the fused op."""

    step: int  # -1 for an input
    port: int
    name: str = ""  # of an input: `gains.1`, `x`


@dataclass(frozen=True, kw_only=True)
class Step:
    """One op of a small graph. Arguments are one entry an edge: `x`, `parts.0`, `parts.1`."""

    op: str
    attrs: Mapping[str, Any]
    arguments: Mapping[str, Ref]
    types: Mapping[str, Any]  # of the arguments, as Op.types takes them


@dataclass(kw_only=True)
class SmallGraph:
    """The small graph that a fused op stands for."""

    steps: list[Step] = field(default_factory=list)
    outputs: list[Ref] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Traced:
    """What stands for a tensor while a composed reference is run on types."""

    type: Type
    ref: Ref
    small: SmallGraph


def callable_of(op: Op) -> Callable[..., Any]:
    """The function of an op inside of references: runs it, or notes the call where types flow."""
    reference = op.reference

    def function(*args: Any, **kwargs: Any) -> Any:
        found = _small(args) or _small(tuple(kwargs.values()))
        if found is None:
            return reference(*args, **kwargs)
        return _note(op, found, args, kwargs)

    return function


def several(op: Op) -> bool:
    """Whether an op gives a tuple, if only of one."""
    return len(op.parsed.outputs) > 1 or op.parsed.outputs[0].mark != ""


def trace(
    op: Op, arguments: Mapping[str, Type | Sequence[Type]], attrs: Mapping[str, Any]
) -> SmallGraph:
    """The small graph of a composed op for argument types. Raises ShapeError."""
    small = SmallGraph()

    def inside(name: str, kind: Type | Sequence[Type]) -> Any:
        if isinstance(kind, Type):
            return Traced(kind, Ref(-1, 0, name), small)
        return [inside(f"{name}.{i}", each) for i, each in enumerate(kind)]

    given = {name: inside(name, kind) for name, kind in arguments.items()}
    result = op.reference(**given, **attrs)
    small.outputs = [each.ref for each in (result if several(op) else [result])]
    return small


def _small(values: Sequence[Any]) -> SmallGraph | None:
    for value in values:
        if isinstance(value, Traced):
            return value.small
        if isinstance(value, (list, tuple)) and (found := _small(value)) is not None:
            return found
    return None


def _note(op: Op, small: SmallGraph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    names = [slot.name for slot in op.parsed.inputs]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    attrs = op.full_attrs({n: v for n, v in given.items() if n in op.attrs})
    inputs = {n: given[n] for n in names if given.get(n) is not None}
    types: dict[str, Any] = {}
    arguments: dict[str, Ref] = {}
    for name, value in inputs.items():
        if isinstance(value, Traced):
            types[name], arguments[name] = value.type, value.ref
        else:
            types[name] = [each.type for each in value]
            arguments |= {f"{name}.{i}": each.ref for i, each in enumerate(value)}
    outputs = op.types(types, attrs)
    small.steps.append(Step(op=op.name, attrs=attrs, arguments=arguments, types=types))
    step = len(small.steps) - 1
    made = [Traced(kind, Ref(step, port), small) for port, kind in enumerate(outputs)]
    return made if several(op) else made[0]
