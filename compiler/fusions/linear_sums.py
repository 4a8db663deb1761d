"""Residual additions of several modalities inside the products that are added, in one call."""

from __future__ import annotations

from typing import Any

from multiway.compiler.compose import call as f
from multiway.compiler.fusion import Fusion, Match, gathered
from multiway.compiler.fusions.linear_sum import match as match_one
from multiway.compiler.fusions.linears import beside, joined_name
from multiway.compiler.graph import LayerGraph, Record, Value
from multiway.compiler.init import NORMAL, ZEROS
from multiway.compiler.op import Op, Reject, Sample


def linear_sums(residuals: Any, xs: Any, weights: Any, biases: Any = None) -> Any:
    biases = biases or [None] * len(weights)
    given = zip(residuals, xs, weights, biases, strict=True)
    return tuple(f.add(residual, f.linear(x, w, b)) for residual, x, w, b in given)


OP = Op(
    signature=("residuals+[B,T+,F+], xs+[B,T+,D+], weights+[F+,D+], biases+?[F+] -> y+[B,T+,F+]"),
    reference=linear_sums,
    doc="Each residual plus the linear of its x.",
    params={"weights": NORMAL, "biases": ZEROS},
    tokenwise=("residuals", "xs"),
    saves=("xs",),
    composed=True,
    samples=[
        Sample(
            shapes={
                "residuals": [(2, 3, 4), (2, 1, 4)],
                "xs": [(2, 3, 5), (2, 1, 2)],
                "weights": [(4, 5), (4, 2)],
                "biases": [(4,), (4,)],
            }
        ),
        Sample(shapes={"residuals": [(2, 3, 4)], "xs": [(2, 3, 5)], "weights": [(4, 5)]}),
    ],
    rejects=[
        Reject(
            shapes={"residuals": [(2, 3, 4)], "xs": [(2, 3, 5)], "weights": [(6, 5)]},
            error="F+ is [4] in residuals but [6] in weights",
        )
    ],
)


def match(graph: LayerGraph, first: Record) -> Match | None:
    """Additions of one linear each, to residuals of their own."""
    sums = {add.path: one for add in beside(graph, first) if (one := _sum(graph, add))}
    if len(sums) < 2 or first.path not in sums:
        return None
    adds = [graph.record(path) for path in sums]
    linears = [graph.record(graph.sources(path)["b"].path) for path in sums]
    params, arguments = gathered(graph, linears, {"weight": "weights", "bias": "biases"})
    return Match(
        at=first.path,
        record=Record(path=joined_name(adds), op="linear_sums", params=params, span=first.span),
        arguments={
            "residuals": [graph.sources(add.path)["a"] for add in adds],
            "xs": [graph.sources(linear.path)["x"] for linear in linears],
            **arguments,
        },
        outputs=tuple(Value(path) for path in sums),
        nodes=frozenset().union(*(one.nodes for one in sums.values())),
    )


def _sum(graph: LayerGraph, add: Record) -> Match | None:
    """An addition as linear_sum would take it, of one linear."""
    found = match_one(graph, add)
    return found if found is not None and len(found.nodes) == 2 else None


FUSION = Fusion(op="linear_sums", by="group_products", roots=("add",), match=match)
