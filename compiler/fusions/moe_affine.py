"""Gains and shifts of experts: one of each for a token."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.experts import Region, experts_of, fused_experts
from multiway.compiler.matching.match import Fusion, Match


def moe_affine(x: Any, gates: Any, weight: Any, bias: Any = None, *, count: int, most: int) -> Any:
    y = f.expert_affine(f.spread(x, count=count), weight, bias)
    return f.mix_experts(y, gates, most=most)


OP = Op(
    signature="x[*,D], gates[*,X], weight[X,D], bias?[X,D] -> y[*,D]",
    reference=moe_affine,
    doc="The sum over experts of gate times (x times gain plus shift).",
    attrs={
        "count": Attr("number of experts", letter="X"),
        "most": Attr("gates of a token that are not 0, at most; 0: any number", 0),
    },
    params={"weight": ONES, "bias": ZEROS},
    tokenwise=("x", "gates"),
    saves=("x", "gates"),
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 4), "gates": (2, 3, 2), "weight": (2, 4), "bias": (2, 4)},
            attrs={"count": 2, "most": 2},
        ),
        Sample(
            shapes={"x": (3, 4), "gates": (3, 3), "weight": (3, 4)},
            attrs={"count": 3, "most": 1},
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (3, 4), "gates": (3, 3), "weight": (3, 5)},
            attrs={"count": 3, "most": 1},
            error="D is 4 in x but 5 in weight",
        )
    ],
    cite="arXiv:1701.06538",
)


def match(graph: LayerGraph, mixed: Record) -> Match | None:
    """A mixture of gains and shifts of one x."""
    region = Region(graph, mixed)
    affine = region.of(mixed, "xs", "expert_affine")
    if affine is None or region.spread(affine) is None:
        return None
    region.takes(affine, weight="weight", bias="bias")
    return fused_experts("moe_affine", region, experts_of(region))


FUSION = Fusion(
    op="moe_affine", roots=("mix_experts",), match=match, fires_on=("pythia-test/top_k",)
)
