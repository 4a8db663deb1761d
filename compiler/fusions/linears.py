"""Linears of several inputs in one call: projections of every modality, or of streams of a mix."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from multiway.compiler.compose import call as f
from multiway.compiler.fusion import Fusion, Match, form, gathered
from multiway.compiler.fusions.packed_linear import part_of
from multiway.compiler.graph import LayerGraph, Record, Value, block_of
from multiway.compiler.init import NORMAL, ZEROS
from multiway.compiler.op import Op, Reject, Sample


def linears(xs: Any, weights: Any, biases: Any = None) -> Any:
    biases = biases or [None] * len(weights)
    return tuple(f.linear(x, w, b) for x, w, b in zip(xs, weights, biases, strict=True))


OP = Op(
    signature="xs+[B,T+,D+], weights+[F+,D+], biases+?[F+] -> y+[B,T+,F+]",
    reference=linears,
    doc="Each x times its transposed weight, plus its bias.",
    params={"weights": NORMAL, "biases": ZEROS},
    tokenwise=("xs",),
    saves=("xs",),
    composed=True,
    samples=[
        Sample(
            shapes={
                "xs": [(2, 3, 4), (2, 1, 5)],
                "weights": [(5, 4), (2, 5)],
                "biases": [(5,), (2,)],
            }
        ),
        Sample(shapes={"xs": [(2, 3, 4)], "weights": [(5, 4)]}),
    ],
    rejects=[
        Reject(
            shapes={"xs": [(2, 3, 4), (2, 3, 4)], "weights": [(5, 4), (5, 3)]},
            error="D+ is [4,4] in xs but [4,3] in weights",
        )
    ],
)


@functools.lru_cache(maxsize=1)
def _order(graph: LayerGraph) -> Mapping[str, int]:
    """Where every node stands."""
    return {record.path: i for i, record in enumerate(graph)}


@functools.lru_cache(maxsize=1)
def _parts(graph: LayerGraph) -> Mapping[tuple[str, str], Sequence[Record]]:
    """The nodes of every part of a block."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in graph:
        if block_of(record.path):
            found.setdefault(part_of(record.path), []).append(record)
    return found


def beside(graph: LayerGraph, first: Record) -> list[Record]:
    """The nodes of a part that are what the first one is, and could stand in its place."""
    order = _order(graph)
    return [
        record
        for record in _parts(graph).get(part_of(first.path), ())
        if record.op == first.op
        and form(graph, record) == form(graph, first)
        and order[record.path] >= order[first.path]
        and all(
            order[value.path] < order[first.path] for value in graph.sources(record.path).values()
        )
    ]


def joined_name(records: Sequence[Record]) -> str:
    """`a.query_key` for a.query.image, a.key.image, a.query.text, a.key.text."""
    paths = [record.path.split(".") for record in records]
    front = len(part_of(records[0].path)[0].split(".")) + 1
    while len({tuple(path[: front + 1]) for path in paths}) == 1 and front + 1 < len(paths[0]):
        front += 1
    middle = dict.fromkeys(path[front] for path in paths)
    return ".".join([*paths[0][:front], "_".join(middle)])


def match(graph: LayerGraph, first: Record) -> Match | None:
    """Linears of a part of a block, of several inputs, none of which needs another one's result.

    Not those that other fusions take: what is added to a residual, and what gelu alone reads.
    """
    if _has_other_use(graph, first):
        return None
    group = [record for record in beside(graph, first) if not _has_other_use(graph, record)]
    if len({graph.sources(record.path)["x"] for record in group}) < 2:
        return None
    params, arguments = gathered(graph, group, {"weight": "weights", "bias": "biases"})
    return Match(
        at=first.path,
        record=Record(path=joined_name(group), op="linears", params=params, span=first.span),
        arguments={"xs": [graph.sources(record.path)["x"] for record in group], **arguments},
        outputs=tuple(Value(record.path) for record in group),
        nodes=frozenset(record.path for record in group),
    )


def _has_other_use(graph: LayerGraph, linear: Record) -> bool:
    readers = [graph.record(path) for path, _ in graph.readers(Value(linear.path))]
    if len(readers) != 1:
        return False
    (reader,) = readers
    if reader.op == "activation" and reader.attrs["kind"] == "gelu":
        behind = [graph.record(path).op for path, _ in graph.readers(Value(reader.path))]
        return behind != ["multiply"]
    return reader.op == "add"


FUSION = Fusion(op="linears", by="group_products", roots=("linear",), match=match)
