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
    adds = sums_beside(graph, first)
    if len(adds) < 2 or first not in adds:
        return None
    linears = [graph.record(graph.sources(add.path)["b"].path) for add in adds]
    params, arguments = gathered(graph, linears, {"weight": "weights", "bias": "biases"})
    return Match(
        at=first.path,
        record=Record(path=joined_name(adds), op="linear_sums", params=params, span=first.span),
        arguments={
            "residuals": [graph.sources(add.path)["a"] for add in adds],
            "xs": [graph.sources(linear.path)["x"] for linear in linears],
            **arguments,
        },
        outputs=tuple(Value(add.path) for add in adds),
        nodes=frozenset(record.path for record in (*adds, *linears)),
    )


def sums_beside(graph: LayerGraph, first: Record) -> list[Record]:
    """The additions of a part that linear_sum would take, of one linear each, and that could all
    stand in the place of the first."""
    return [add for add in beside(graph, first) if _is_sum(graph, add)]


def _is_sum(graph: LayerGraph, add: Record) -> bool:
    found = match_one(graph, add)
    return found is not None and len(found.nodes) == 2


FUSION = Fusion(op="linear_sums", by="group_products", roots=("add",), match=match)
