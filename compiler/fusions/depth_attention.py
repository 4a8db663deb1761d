"""Attention over depth: the router, the average that it weighs and the norms that read it, as one.

Three passes over all earlier hiddens become one: scores, softmax and sum.
"""

from __future__ import annotations

from typing import Any

from multiway.compiler.fusions.fused_mix import norms_of
from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.graph.signature import group_width
from multiway.compiler.matching.match import Fusion, Match, params_list


def depth_attention(
    history: Any,
    query: Any,
    weight: Any = None,
    gains: Any = None,
    biases: Any = None,
    *,
    groups: int,
    eps: float,
    norm: str,
    norm_eps: float,
    normed: int,
    raw: int,
) -> Any:
    weights = f.depth_router(history, query, weight, groups=groups, eps=eps)
    y = f.mix(history, weights)[0] if groups == 1 else f.mix_groups(history, weights)
    found = []
    for i in range(normed):
        gain, bias = (each[i] if each else None for each in (gains, biases))
        found.append(getattr(f, norm)(y, gain, bias, eps=norm_eps))
    return (*found, *[y] * raw)


OP = Op(
    signature=(
        "history[L,B,T,D]:list, query[D], weight?[D], gains+?[D], biases+?[D]"
        " -> normed{N}[B,T,D], raw{R}[B,T,D]"
    ),
    reference=depth_attention,
    doc=(
        "The average of the history by the weights of a depth_router: through `normed` norms with "
        "a gain and a bias each, then as it is, if `raw`."
    ),
    attrs={
        "groups": Attr("of channels, each with weights of its own", 1, letter="G"),
        "eps": Attr("of the router's norm", 1e-6),
        "norm": Attr("layer_norm, rms_norm, or empty where there is none"),
        "norm_eps": Attr("of the norms that read the average", 1e-6),
        "normed": Attr("number of norms", 0, letter="N"),
        "raw": Attr("1 if the average itself is given too, else 0", 0, letter="R"),
    },
    params={"query": ZEROS, "weight": ONES, "gains": ONES, "biases": ZEROS},
    derive=group_width,
    tokenwise=("history",),
    saves=("history", "output"),
    composed=True,
    samples=[
        Sample(
            shapes={
                "history": [(2, 3, 4)] * 3,
                "query": (4,),
                "weight": (4,),
                "gains": [(4,)] * 2,
                "biases": [(4,)] * 2,
            },
            attrs={
                **{"groups": 2, "eps": 1e-6, "norm": "layer_norm", "norm_eps": 1e-5},
                **{"normed": 2, "raw": 1},
            },
        ),
        Sample(
            shapes={"history": [(2, 3, 4)] * 5, "query": (4,), "weight": (4,), "gains": [(4,)]},
            attrs={"groups": 1, "norm": "rms_norm", "normed": 1},
        ),
        Sample(
            shapes={"history": [(2, 3, 4)] * 3, "query": (4,)},
            attrs={"groups": 4, "norm": "", "raw": 1},
        ),
    ],
    rejects=[
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "query": (5,)},
            attrs={"norm": "", "raw": 1},
            error="D is 4 in history but 5 in query",
        ),
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "query": (4,)},
            attrs={"groups": 3, "norm": "", "raw": 1},
            error="D: 4 is not a multiple of G = 3",
        ),
    ],
    cite="arXiv:2603.15031",
)


def match(graph: LayerGraph, router: Record) -> Match | None:
    """A router, the sum that it weighs, and all norms of one kind that read that."""
    mix = _mix(graph, router)
    if mix is None:
        return None
    average = Value(mix.path)
    norms = norms_of(graph, mix)
    inside = {record.path for record in norms}
    raw = int(any(reader not in inside for reader, _ in graph.readers(average)))
    if not norms and not raw:
        return None
    attrs = {"groups": router.attrs["groups"], "eps": router.attrs["eps"], "norm": ""}
    attrs |= {"norm_eps": 1e-6, "normed": len(norms), "raw": raw}
    if norms:
        attrs |= {"norm": norms[0].op, "norm_eps": norms[0].attrs["eps"]}
    params = dict(router.params)
    for role, many in (("weight", "gains"), ("bias", "biases")):
        if norms and role in norms[0].params:
            params |= params_list(many, [record.params[role] for record in norms])
    return Match(
        at=mix.path,
        record=Record(
            path=mix.path, op="depth_attention", attrs=attrs, params=params, span=mix.span
        ),
        arguments={"history": graph.sources(router.path)["history"]},
        outputs=(*(Value(record.path) for record in norms), *[average] * raw),
        nodes=frozenset({router.path, mix.path, *inside}),
    )


def _mix(graph: LayerGraph, router: Record) -> Record | None:
    """The sum with a router's weights, of the history that it looked at."""
    history = graph.sources(router.path)["history"]
    name = "mix" if router.attrs["groups"] == 1 else "mix_groups"
    for path, argument in graph.readers(Value(router.path)):
        record = graph.record(path)
        if record.op == name and argument == "weights" and not record.params:
            return record if graph.sources(path)["history"] == history else None
    return None


FUSION = Fusion(
    op="depth_attention", roots=("depth_router",), match=match, fires_on=("pythia-test+attnres",)
)
