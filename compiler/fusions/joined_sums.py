"""Residual additions of the segments of a joined value inside the products that are added."""

from __future__ import annotations

from typing import Any

from multiway.compiler.compose import call as f
from multiway.compiler.fusion import Fusion, Match, gathered
from multiway.compiler.fusions.linear_sums import sums_beside
from multiway.compiler.fusions.linears import joined_name
from multiway.compiler.graph import LayerGraph, Record, Value
from multiway.compiler.init import NORMAL, ZEROS
from multiway.compiler.op import Op, Reject, Sample


def joined_sums(residuals: Any, x: Any, sizes: Any, weights: Any, biases: Any = None) -> Any:
    biases = biases or [None] * len(weights)
    given = zip(residuals, f.split(x, sizes), weights, biases, strict=True)
    return tuple(f.add(residual, f.linear(part, w, b)) for residual, part, w, b in given)


OP = Op(
    signature=(
        "residuals+[B,T+,F], x[B,T+,D], sizes[T+]:sizes, weights+[F,D], biases+?[F] -> y+[B,T+,F]"
    ),
    reference=joined_sums,
    doc="Each residual plus the linear of its segment of x.",
    params={"weights": NORMAL, "biases": ZEROS},
    saves=("x",),
    composed=True,
    samples=[
        Sample(
            shapes={
                "residuals": [(2, 3, 4), (2, 1, 4)],
                "x": (2, 4, 5),
                "sizes": (3, 1),
                "weights": [(4, 5), (4, 5)],
                "biases": [(4,), (4,)],
            }
        ),
        Sample(
            shapes={"residuals": [(2, 3, 4)], "x": (2, 3, 5), "sizes": (3,), "weights": [(4, 5)]}
        ),
    ],
    rejects=[
        Reject(
            shapes={
                "residuals": [(2, 3, 4), (2, 2, 4)],
                "x": (2, 4, 5),
                "sizes": (3, 1),
                "weights": [(4, 5), (4, 5)],
            },
            error="T+ is [3,1] in sizes but [3,2] in residuals",
        )
    ],
)


def match(graph: LayerGraph, first: Record) -> Match | None:
    """Additions of a linear of every segment of one value, each to a residual of its own."""
    sums = sums_beside(graph, first)
    linears = [graph.record(graph.sources(add.path)["b"].path) for add in sums]
    inputs = [graph.sources(linear.path)["x"] for linear in linears]
    if first not in sums or (cut := graph.record(inputs[0].path)).op != "split":
        return None
    if inputs != [Value(cut.path, port) for port in range(len(cut.outputs))]:
        return None
    params, arguments = gathered(graph, linears, {"weight": "weights", "bias": "biases"})
    return Match(
        at=first.path,
        record=Record(path=joined_name(sums), op="joined_sums", params=params, span=first.span),
        arguments={
            "residuals": [graph.sources(add.path)["a"] for add in sums],
            **graph.sources(cut.path),
            **arguments,
        },
        outputs=tuple(Value(add.path) for add in sums),
        nodes=frozenset(record.path for record in (*sums, *linears, cut)),
    )


FUSION = Fusion(op="joined_sums", by="group_products", roots=("add",), match=match)
