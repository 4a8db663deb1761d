"""An activation times another value, as gated feed-forward parts have it: one pass over both."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, source

KINDS = ("silu", "gelu")


def gated_activation(x: Any, gate: Any, *, kind: str) -> Any:
    return f.multiply(f.activation(gate, kind=kind), x)


OP = Op(
    signature="x[*,F], gate[*,F] -> y[*,F]",
    reference=gated_activation,
    doc="x times an activation of the gate, element by element.",
    attrs={"kind": Attr("of the activation", "silu")},
    tokenwise=("x", "gate"),
    saves=("x", "gate"),
    composed=True,
    samples=[
        Sample(shapes={"x": (2, 3, 4), "gate": (2, 3, 4)}, attrs={"kind": "silu"}),
        Sample(shapes={"x": (3, 4), "gate": (3, 4)}, attrs={"kind": "gelu"}),
    ],
    rejects=[
        Reject(
            shapes={"x": (3, 4), "gate": (3, 5)},
            attrs={"kind": "silu"},
            error="F is 4 in x but 5 in gate",
        )
    ],
    cite="arXiv:2002.05202",
)


def match(graph: LayerGraph, product: Record) -> Match | None:
    """An activation and the product that is the only one to read it."""
    activation = source(graph, product.path, "a")
    if activation is None or activation.op != "activation" or activation.attrs["kind"] not in KINDS:
        return None
    return Match(
        at=product.path,
        record=Record(
            path=product.path,
            op="gated_activation",
            attrs={"kind": activation.attrs["kind"]},
            span=product.span,
        ),
        arguments={
            "x": graph.sources(product.path)["b"],
            "gate": graph.sources(activation.path)["x"],
        },
        outputs=(Value(product.path),),
        nodes=frozenset({activation.path, product.path}),
    )


FUSION = Fusion(op="gated_activation", roots=("multiply",), match=match, fires_on=("prenorm-test",))
