"""What the programs of a model take, for the check of a user's inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from multiway.compiler.graph.layer_graph import INPUT, LayerGraph, Record, Value
from multiway.compiler.graph.types import Sym, Tensor, Type, number
from multiway.runtime.inputs import Expected
from multiway.runtime.labels import IGNORED
from multiway.specs.language.inputs import Form
from multiway.specs.spec import Spec


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
        below=source.vocab, longest=spec.tokens_of(base) if source.form() != Form.IMAGE else None
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
