"""Linears of several modalities whose results are joined: queries, keys and values of attention."""

from __future__ import annotations

from typing import Any

from multiway.compiler.compose import call as f
from multiway.compiler.fusion import Fusion, Match, form, gathered
from multiway.compiler.fusions.linears import beside, joined_name
from multiway.compiler.graph import LayerGraph, Record, Value
from multiway.compiler.init import NORMAL, ZEROS
from multiway.compiler.op import Attr, Op, Reject, Sample


def joined_linears(xs: Any, weights: Any, biases: Any = None, *, count: int) -> Any:
    biases, ways = biases or [None] * len(weights), len(xs)
    ys = [f.linear(xs[i % ways], w, biases[i]) for i, w in enumerate(weights)]
    return tuple(f.concat(ys[j * ways : (j + 1) * ways]) for j in range(count))


OP = Op(
    signature="xs+[B,T+,D], weights+[F,D], biases+?[F] -> y{N}[B,T+,F]",
    reference=joined_linears,
    doc="`count` times one linear for each x, joined along the tokens.",
    attrs={"count": Attr("number of results", letter="N")},
    params={"weights": NORMAL, "biases": ZEROS},
    saves=("xs",),
    composed=True,
    samples=[
        Sample(
            shapes={
                "xs": [(2, 3, 4), (2, 1, 4)],
                "weights": [(5, 4)] * 4,
                "biases": [(5,)] * 4,
            },
            attrs={"count": 2},
        ),
        Sample(shapes={"xs": [(2, 3, 4)], "weights": [(5, 4)]}, attrs={"count": 1}),
    ],
    rejects=[
        Reject(
            shapes={"xs": [(2, 3, 4), (2, 1, 4)], "weights": [(5, 4), (6, 4)]},
            attrs={"count": 1},
            error="F is 5 in weights.0 but 6 in weights.1",
        )
    ],
)


def match(graph: LayerGraph, first: Record) -> Match | None:
    """Joined results of linears of the same inputs, none of which needs another one's result."""
    inputs, width = _inputs(graph, first), graph.shape(Value(first.path))[-1]
    if len(set(inputs)) < 2:
        return None
    group = [
        record
        for record in beside(graph, first)
        if _inputs(graph, record) == inputs and graph.shape(Value(record.path))[-1] == width
    ]
    linears = [linear for record in group for linear in _parts(graph, record)]
    if len({form(graph, linear) for linear in linears}) != 1:  # none outside of blocks
        return None
    params, arguments = gathered(graph, linears, {"weight": "weights", "bias": "biases"})
    return Match(
        at=first.path,
        record=Record(
            path=joined_name(linears),
            op="joined_linears",
            attrs={"count": len(group)},
            params=params,
            span=first.span,
        ),
        arguments={"xs": inputs, **arguments},
        outputs=tuple(Value(record.path) for record in group),
        nodes=frozenset(record.path for record in (*group, *linears)),
    )


def _parts(graph: LayerGraph, joined: Record) -> list[Record]:
    return [graph.record(value.path) for value in graph.sources(joined.path).values()]


def _inputs(graph: LayerGraph, joined: Record) -> list[Value]:
    """What the linears read whose results are joined; nothing if others are joined, too."""
    parts = _parts(graph, joined)
    if any(part.op != "linear" for part in parts):
        return []
    return [graph.sources(part.path)["x"] for part in parts]


FUSION = Fusion(op="joined_linears", by="group_products", roots=("concat",), match=match)
