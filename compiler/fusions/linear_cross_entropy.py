"""The vocabulary's matrix product with the loss that reads it."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, source


def linear_cross_entropy(
    x: Any, labels: Any, weight: Any, bias: Any = None, *, smoothing: float
) -> Any:
    return f.cross_entropy(f.linear(x, weight, bias), labels, smoothing=smoothing)


OP = Op(
    signature="x[*,D], labels[*]:int, weight[V,D], bias?[V] -> loss[], count[]:int",
    reference=linear_cross_entropy,
    doc="cross_entropy of a linear, whose logits a kernel may make in parts.",
    attrs={"smoothing": Attr("probability given to the wrong classes", 0.0)},
    params={"weight": NORMAL, "bias": ZEROS},
    saves=("x",),
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 5), "labels": (2, 3), "weight": (4, 5), "bias": (4,)},
            attrs={"smoothing": 0.1},
        ),
        Sample(shapes={"x": (2, 5), "labels": (2,), "weight": (4, 5)}, attrs={"smoothing": 0.0}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 5), "labels": (2, 4), "weight": (4, 5)},
            attrs={"smoothing": 0.0},
            error="* is [2,3] in x but [2,4] in labels",
        )
    ],
)


def match(graph: LayerGraph, loss: Record) -> Match | None:
    """A cross entropy whose logits a linear makes."""
    logits = source(graph, loss.path, "logits")
    if logits is None or logits.op != "linear" or "weight" not in logits.params:
        return None
    reads = graph.sources(loss.path)
    return Match(
        at=loss.path,
        record=Record(
            path=loss.path,
            op="linear_cross_entropy",
            attrs=loss.attrs,
            params=logits.params,
            span=loss.span or logits.span,
        ),
        arguments={"x": graph.sources(logits.path)["x"], "labels": reads["labels"]},
        outputs=(Value(loss.path, 0), Value(loss.path, 1)),
        nodes=frozenset({loss.path, logits.path}),
    )


FUSION = Fusion(
    op="linear_cross_entropy", roots=("cross_entropy",), match=match, fires_on=("pythia-test",)
)
