"""Two norms of one input, as parallel blocks have them: one pass, one pair of statistics."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value, block_of
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, params_list


def norm_pair(x: Any, weights: Any, biases: Any = None, *, norm: str, eps: float) -> Any:
    function = getattr(f, norm)
    biases = biases or [None, None]
    return tuple(function(x, w, b, eps=eps) for w, b in zip(weights, biases, strict=True))


OP = Op(
    signature="x[*,D], weights+[D], biases+?[D] -> first[*,D], second[*,D]",
    reference=norm_pair,
    doc="The same norm of x with two gains, and two biases if there are any.",
    attrs={"norm": Attr("layer_norm or rms_norm"), "eps": Attr("of both", 1e-5)},
    params={"weights": ONES, "biases": ZEROS},
    tokenwise=("x",),
    saves=("x",),
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 4), "weights": [(4,), (4,)], "biases": [(4,), (4,)]},
            attrs={"norm": "layer_norm", "eps": 1e-5},
        ),
        Sample(
            shapes={"x": (3, 4), "weights": [(4,), (4,)]},
            attrs={"norm": "rms_norm", "eps": 1e-6},
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (3, 4), "weights": [(4,), (5,)]},
            attrs={"norm": "rms_norm", "eps": 1e-6},
            error="D is 4 in x but 5 in weights.1",
        )
    ],
)


def match(graph: LayerGraph, first: Record) -> Match | None:
    """A norm and the next one in its block that differs in parameters only, two by two."""
    x = graph.sources(first.path)["x"]
    alike = [
        record
        for path, argument in graph.readers(x)
        if argument == "x" and _form(record := graph.record(path)) == _form(first)
    ]
    place = alike.index(first)
    if place % 2 or place + 1 == len(alike) or "weight" not in first.params:
        return None
    second = alike[place + 1]
    params = params_list("weights", [first.params["weight"], second.params["weight"]])
    if "bias" in first.params:
        params |= params_list("biases", [first.params["bias"], second.params["bias"]])
    attrs = {"norm": first.op, "eps": first.attrs["eps"]}
    return Match(
        at=first.path,
        record=Record(
            path=f"{first.path}_pair", op="norm_pair", attrs=attrs, params=params, span=first.span
        ),
        arguments={"x": x},
        outputs=(Value(first.path), Value(second.path)),
        nodes=frozenset({first.path, second.path}),
    )


def _form(norm: Record) -> tuple[Any, ...]:
    return norm.op, norm.attrs.get("eps"), tuple(norm.params), block_of(norm.path)


FUSION = Fusion(op="norm_pair", norms=True, match=match, fires_on=("pythia-test",))
