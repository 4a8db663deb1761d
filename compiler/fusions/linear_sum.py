"""Residual additions inside the matrix products that are added."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value, block_of
from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, form, gathered, source


def linear_sum(residual: Any, xs: Any, weights: Any, biases: Any = None) -> Any:
    biases = biases or [None] * len(xs)
    for x, weight, bias in zip(xs, weights, biases, strict=True):
        residual = f.add(residual, f.linear(x, weight, bias))
    return residual


OP = Op(
    signature="residual[*,F], xs+[*,D+], weights+[F,D+], biases+?[F] -> y[*,F]",
    reference=linear_sum,
    doc="The residual plus a linear of each x.",
    params={"weights": NORMAL, "biases": ZEROS},
    tokenwise=("residual", "xs"),
    saves=("xs",),
    packs="each",
    composed=True,
    samples=[
        Sample(
            shapes={
                "residual": (2, 3, 4),
                "xs": [(2, 3, 5), (2, 3, 2)],
                "weights": [(4, 5), (4, 2)],
                "biases": [(4,), (4,)],
            }
        ),
        Sample(shapes={"residual": (3, 4), "xs": [(3, 5)], "weights": [(4, 5)]}),
    ],
    rejects=[
        Reject(
            shapes={"residual": (3, 4), "xs": [(3, 5)], "weights": [(6, 5)]},
            error="F is 4 in residual but 6 in weights.0",
        )
    ],
)


def match(graph: LayerGraph, last: Record) -> Match | None:
    """Additions of linears, one behind the other: `add(add(residual, linear), linear)`."""
    if _added(graph, last) is None or any(
        _goes_on(graph, last, graph.record(path)) for path, _ in graph.readers(Value(last.path))
    ):
        return None
    adds = [last]
    while (before := source(graph, adds[-1].path, "a")) and _goes_on(graph, before, adds[-1]):
        adds.append(before)
    found = [linear for add in reversed(adds) if (linear := _added(graph, add))]
    params, arguments = gathered(graph, found, {"weight": "weights", "bias": "biases"})
    return Match(
        at=last.path,
        record=Record(path=last.path, op="linear_sum", params=params, span=last.span),
        arguments={
            "residual": graph.sources(adds[-1].path)["a"],
            "xs": [graph.sources(linear.path)["x"] for linear in found],
            **arguments,
        },
        outputs=(Value(last.path),),
        nodes=frozenset(record.path for record in (*adds, *found)),
    )


def _goes_on(graph: LayerGraph, first: Record, second: Record) -> bool:
    """Whether two additions can be one sum: only the second reads the first, as its `a`."""
    if {first.op, second.op} != {"add"} or block_of(first.path) != block_of(second.path):
        return False
    one, other = _added(graph, first), _added(graph, second)
    if one is None or other is None or form(graph, one) != form(graph, other):
        return False
    return graph.readers(Value(first.path)) == [(second.path, "a")]


def _added(graph: LayerGraph, add: Record) -> Record | None:
    """The linear that an addition adds, if nothing else reads it."""
    linear = source(graph, add.path, "b")
    if linear is None or linear.op != "linear":
        return None
    return linear if len(graph.readers(Value(linear.path))) == 1 else None


FUSION = Fusion(
    op="linear_sum", roots=("add",), match=match, fires_on=("pythia-test", "beit3-test")
)
