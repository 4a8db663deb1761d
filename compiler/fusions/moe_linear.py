"""A linear with experts: only those that a token goes to are asked."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.experts import Region, experts_of, fused_experts
from multiway.compiler.matching.match import Fusion, Match


def moe_linear(x: Any, gates: Any, weight: Any, bias: Any = None, *, count: int, most: int) -> Any:
    y = f.expert_linear(f.spread(x, count=count), weight, bias)
    return f.mix_experts(y, gates, most=most)


OP = Op(
    signature="x[*,D], gates[*,X], weight[X,F,D], bias?[X,F] -> y[*,F]",
    reference=moe_linear,
    doc="The sum over experts of gate times linear of x.",
    attrs={
        "count": Attr("number of experts", letter="X"),
        "most": Attr("gates of a token that are not 0, at most; 0: any number", 0),
    },
    params={"weight": NORMAL, "bias": ZEROS},
    tokenwise=("x", "gates"),
    saves=("x", "gates"),
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 4), "gates": (2, 3, 2), "weight": (2, 5, 4), "bias": (2, 5)},
            attrs={"count": 2, "most": 2},
        ),
        Sample(
            shapes={"x": (3, 4), "gates": (3, 3), "weight": (3, 5, 4)},
            attrs={"count": 3, "most": 0},
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (3, 4), "gates": (3, 3), "weight": (2, 5, 4)},
            attrs={"count": 3, "most": 1},
            error="X is 3 in attributes but 2 in weight",
        )
    ],
    cite="arXiv:1701.06538",
)


def match(graph: LayerGraph, mixed: Record) -> Match | None:
    """A mixture of linears that all read one x."""
    region = Region(graph, mixed)
    linear = region.of(mixed, "xs", "expert_linear")
    if linear is None or region.spread(linear) is None:
        return None
    region.takes(linear, weight="weight", bias="bias")
    return fused_experts("moe_linear", region, experts_of(region))


FUSION = Fusion(
    op="moe_linear", roots=("mix_experts",), match=match, fires_on=("pythia-test/top_k",)
)
