"""Several linears of one input as one matrix product."""

from __future__ import annotations

import os.path
from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value, block_of
from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, form, gathered


def packed_linear(x: Any, weights: Any, biases: Any = None) -> Any:
    biases = biases or [None] * len(weights)
    return tuple(f.linear(x, w, b) for w, b in zip(weights, biases, strict=True))


OP = Op(
    signature="x[*,D], weights+[F+,D], biases+?[F+] -> y+[*,F+]",
    reference=packed_linear,
    doc="x times each transposed weight, plus its bias.",
    params={"weights": NORMAL, "biases": ZEROS},
    saves=("x",),
    products=1,
    packs="together",
    composed=True,
    samples=[
        Sample(shapes={"x": (2, 3, 4), "weights": [(5, 4), (2, 4)], "biases": [(5,), (2,)]}),
        Sample(shapes={"x": (3, 4), "weights": [(5, 4)]}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 4), "weights": [(5, 4), (5, 3)]},
            error="D is 4 in x but 3 in weights.1",
        )
    ],
)


def match(graph: LayerGraph, first: Record) -> Match | None:
    """All linears of a part of a block that read what the first one reads.

    Of one part: where attention and feed-forward part read one norm, gelu is fused into the latter.
    """
    x = graph.sources(first.path)["x"]
    group = [
        record
        for path, argument in graph.readers(x)
        if (record := graph.record(path)).op == "linear"
        and argument == "x"
        and form(graph, record) == form(graph, first)
        and _part_of(path) == _part_of(first.path)
    ]
    if len(group) < 2 or not block_of(first.path):
        return None
    params, arguments = gathered(graph, group, {"weight": "weights", "bias": "biases"})
    path = _name([record.path for record in group])
    return Match(
        at=group[0].path,
        record=Record(path=path, op="packed_linear", params=params, span=first.span),
        arguments={"x": x, **arguments},
        outputs=tuple(Value(record.path) for record in group),
        nodes=frozenset(record.path for record in group),
    )


def _part_of(path: str) -> tuple[str, str]:
    """The block of a node and its part there: `blocks.3`, `attention`."""
    block = block_of(path)
    return block, path.removeprefix(f"{block}.").split(".")[0]


def _name(paths: list[str]) -> str:
    """`a.query_key_value.text` for a.query.text, a.key.text, a.value.text."""
    front = os.path.commonpath([path.replace(".", "/") for path in paths]).split("/")
    parts = [path.split(".")[len(front) :] for path in paths]
    middle = "_".join(part[0] for part in parts)
    return ".".join([*front, middle, *parts[0][1:]])


FUSION = Fusion(
    op="packed_linear", roots=("linear",), match=match, fires_on=("pythia-test", "beit3-test")
)
