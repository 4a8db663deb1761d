"""A linear, gelu and the norm behind it: one pass over what the product gives."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, source


def linear_activation(
    x: Any,
    weight: Any,
    bias: Any = None,
    gain: Any = None,
    shift: Any = None,
    *,
    kind: str,
    norm: str,
    eps: float,
) -> Any:
    y = f.activation(f.linear(x, weight, bias), kind=kind)
    return getattr(f, norm)(y, gain, shift, eps=eps) if norm else y


OP = Op(
    signature="x[*,D], weight[F,D], bias?[F], gain?[F], shift?[F] -> y[*,F]",
    reference=linear_activation,
    doc="An activation of a linear of x, normalised if `norm` is given.",
    attrs={
        "kind": Attr("of the activation", "gelu"),
        "norm": Attr("layer_norm, rms_norm or empty", ""),
        "eps": Attr("of the norm", 1e-5),
    },
    params={"weight": NORMAL, "bias": ZEROS, "gain": ONES, "shift": ZEROS},
    tokenwise=("x",),
    saves=("x", "inner"),
    packs="each",
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 4), "weight": (5, 4), "bias": (5,), "gain": (5,), "shift": (5,)},
            attrs={"kind": "gelu", "norm": "layer_norm", "eps": 1e-5},
        ),
        Sample(
            shapes={"x": (3, 4), "weight": (5, 4), "gain": (5,)},
            attrs={"kind": "gelu", "norm": "rms_norm", "eps": 1e-6},
        ),
        Sample(
            shapes={"x": (2, 3, 4), "weight": (5, 4), "bias": (5,)},
            attrs={"kind": "gelu", "norm": "", "eps": 1e-5},
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (3, 4), "weight": (5, 4), "gain": (4,)},
            attrs={"kind": "gelu", "norm": "layer_norm", "eps": 1e-5},
            error="F is 5 in weight but 4 in gain",
        )
    ],
    cite="arXiv:1606.08415",
)

LINEAR = {"weight": "weight", "bias": "bias"}
NORM = {"weight": "gain", "bias": "shift"}


def match(graph: LayerGraph, activation: Record) -> Match | None:
    """gelu of a linear, and the norm that is the only one to read it, if there is one.

    What a memory plan keeps and what it makes again stay apart: one op is kept or made as a whole,
    and a product that is kept would be made once more with its activation.
    """
    linear = source(graph, activation.path, "x")
    if activation.attrs["kind"] != "gelu" or linear is None or linear.op != "linear":
        return None
    again = activation.path in graph.recompute
    if (linear.path in graph.recompute) != again:
        return None
    nodes, roles = [linear, activation], [(linear, LINEAR)]
    attrs = {"kind": "gelu", "norm": "", "eps": 1e-5}
    readers = graph.readers(Value(activation.path))
    norm = graph.record(readers[0][0]) if len(readers) == 1 else None
    if norm is not None and norm.is_norm and (norm.path in graph.recompute) == again:
        nodes.append(norm)
        roles.append((norm, NORM))
        attrs |= {"norm": norm.op, "eps": norm.attrs["eps"]}
    # Weights are parameters, or values where norms are folded into them.
    params = {
        new: r.params[old] for r, names in roles for old, new in names.items() if old in r.params
    }
    arguments = {"x": graph.sources(linear.path)["x"]}
    for record, names in roles:
        given = graph.sources(record.path)
        arguments |= {new: given[old] for old, new in names.items() if old in given}
    last = nodes[-1]
    return Match(
        at=last.path,
        record=Record(
            path=last.path, op="linear_activation", attrs=attrs, params=params, span=last.span
        ),
        arguments=arguments,
        outputs=(Value(last.path),),
        nodes=frozenset(record.path for record in nodes),
    )


FUSION = Fusion(
    op="linear_activation",
    roots=("activation",),
    match=match,
    fires_on=("pythia-test", "beit3-test"),
)
