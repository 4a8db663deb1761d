"""The generator of mixing weights: norm, two linears with an activation between, static weights."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NEWEST, NORMAL, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, source


def token_weights(
    x: Any, hidden: Any, output: Any, static: Any = None, *, ways: int, eps: float, kind: str
) -> Any:
    z = f.linear(f.rms_norm(x, eps=eps), hidden)
    return f.depth_weights(f.linear(f.activation(z, kind=kind), output), static, ways=ways)


OP = Op(
    signature="x[B,T,D], hidden[F,D], output[C*L,F], static?[C,L] -> weights[B,T,C,L]",
    reference=token_weights,
    doc="Mixing weights of every token, from its newest hidden.",
    attrs={
        "ways": Attr("number of sums", letter="C"),
        "eps": Attr("of the norm", 1e-6),
        "kind": Attr("of the activation"),
    },
    params={"hidden": NORMAL, "output": ZEROS, "static": NEWEST},
    tokenwise=("x",),
    saves=("x",),
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 4), "hidden": (5, 4), "output": (6, 5), "static": (2, 3)},
            attrs={"ways": 2, "eps": 1e-6, "kind": "gelu"},
        ),
        Sample(
            shapes={"x": (2, 3, 4), "hidden": (5, 4), "output": (6, 5)},
            attrs={"ways": 2, "eps": 1e-6, "kind": "silu"},
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 4), "hidden": (5, 4), "output": (7, 5)},
            attrs={"ways": 2, "eps": 1e-6, "kind": "gelu"},
            error="output: 7 is not a multiple of C = 2",
        )
    ],
    cite="arXiv:2502.12170",
)


def match(graph: LayerGraph, weights: Record) -> Match | None:
    """depth_weights <- linear <- activation <- linear <- rms_norm, without gains and biases."""
    chain = [weights]
    for op, argument in (
        ("linear", "dynamic"),
        ("activation", "x"),
        ("linear", "x"),
        ("rms_norm", "x"),
    ):
        found = source(graph, chain[-1].path, argument)
        if found is None or found.op != op:
            return None
        chain.append(found)
    _, output, activation, hidden, norm = chain
    if "static" in graph.sources(weights.path):  # columns that were picked from a parameter
        return None
    if norm.params or not all(set(each.params) == {"weight"} for each in (output, hidden)):
        return None
    params = {"hidden": hidden.params["weight"], "output": output.params["weight"]}
    attrs = {"ways": weights.attrs["ways"], "eps": norm.attrs["eps"]}
    return Match(
        at=weights.path,
        record=Record(
            path=weights.path,
            op="token_weights",
            attrs={**attrs, "kind": activation.attrs["kind"]},
            params={**params, **weights.params},
            span=weights.span,
        ),
        arguments={"x": graph.sources(norm.path)["x"]},
        outputs=(Value(weights.path),),
        nodes=frozenset(record.path for record in chain),
    )


FUSION = Fusion(
    op="token_weights", roots=("depth_weights",), match=match, fires_on=("mudd-pythia-test",)
)
