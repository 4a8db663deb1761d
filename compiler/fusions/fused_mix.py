"""Depth mixes and the norms that read them: every source is read once for all streams."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, params_list, source


def fused_mix(
    history: Any,
    weights: Any,
    gains: Any = None,
    biases: Any = None,
    *,
    norm: str,
    eps: float,
    normed: list[int],
    raw: list[int],
) -> Any:
    streams = f.mix(history, weights)
    found = []
    for i, way in enumerate(normed):
        gain, bias = (each[i] if each else None for each in (gains, biases))
        found.append(getattr(f, norm)(streams[way], gain, bias, eps=eps))
    return (*found, *(streams[way] for way in raw))


OP = Op(
    signature=(
        "history[L,B,T,D]:list, weights[*,C,L], gains+?[D], biases+?[D]"
        " -> normed{N}[B,T,D], raw{R}[B,T,D]"
    ),
    reference=fused_mix,
    doc=(
        "Weighted sums over the history, ways `normed` through a norm with a gain and a bias each, "
        "then ways `raw` as they are. A way may stand in both lists, or in none if nothing reads "
        "it."
    ),
    attrs={
        "norm": Attr("layer_norm, rms_norm, or empty where `normed` is"),
        "eps": Attr("of the norms", 1e-5),
        "normed": Attr("ways that are normalised", letter="N"),
        "raw": Attr("ways that are given as they are", letter="R"),
    },
    params={"gains": ONES, "biases": ZEROS},
    tokenwise=("history", "weights"),
    saves=("history", "weights"),
    composed=True,
    samples=[
        Sample(
            shapes={
                "history": [(2, 3, 4)] * 3,
                "weights": (2, 3, 2, 3),
                "gains": [(4,)] * 2,
                "biases": [(4,)] * 2,
            },
            attrs={"norm": "layer_norm", "eps": 1e-5, "normed": [1, 0], "raw": [1]},
        ),
        Sample(
            shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 3), "gains": [(4,)]},
            attrs={"norm": "rms_norm", "eps": 1e-6, "normed": [0], "raw": []},
        ),
        Sample(
            shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 3)},
            attrs={"norm": "", "eps": 1e-5, "normed": [], "raw": [0, 1]},
        ),
    ],
    rejects=[
        Reject(
            shapes={"history": [(2, 3, 4)] * 3, "weights": (2, 4)},
            attrs={"norm": "", "eps": 1e-5, "normed": [], "raw": [0]},
            error="L is 3 in history but 4 in weights",
        )
    ],
    cite="arXiv:2502.12170",
)


def match(graph: LayerGraph, mix: Record) -> Match | None:
    """A mix and all norms of one kind that read it. A stream with another reader is given too.

    One that a router weighs belongs to that: see depth_attention.
    """
    router = source(graph, mix.path, "weights") if "weights" not in mix.params else None
    if router is not None and router.op == "depth_router" and router.attrs["groups"] == 1:
        return None
    norms = norms_of(graph, mix)
    inside = {record.path for record in norms}
    raw = [
        port
        for port in sorted(graph.ports_read(mix.path))
        if any(reader not in inside for reader, _ in graph.readers(Value(mix.path, port)))
    ]
    normed = [graph.sources(record.path)["x"].port for record in norms]
    attrs = {"norm": "", "eps": 1e-5, "normed": normed, "raw": raw}
    if norms:
        attrs |= {"norm": norms[0].op, "eps": norms[0].attrs["eps"]}
    params: dict[str, str] = {}
    for role, many in (("weight", "gains"), ("bias", "biases")):
        if norms and role in norms[0].params:
            params |= params_list(many, [record.params[role] for record in norms])
    return Match(
        at=mix.path,
        record=Record(path=mix.path, op="fused_mix", attrs=attrs, params=params, span=mix.span),
        arguments=graph.arguments(mix.path),
        outputs=(
            *(Value(record.path) for record in norms),
            *(Value(mix.path, port) for port in raw),
        ),
        nodes=frozenset({mix.path, *inside}),
    )


def norms_of(graph: LayerGraph, mix: Record) -> list[Record]:
    """The norms that read a stream, as far as they are like the first of them."""
    found = []
    for port in sorted(graph.ports_read(mix.path)):
        for reader, argument in graph.readers(Value(mix.path, port)):
            record = graph.record(reader)
            if record.is_norm and argument == "x" and len(graph.sources(reader)) == 1:
                found.append(record)
    return [r for r in found if _form(r) == _form(found[0])]


def _form(norm: Record) -> tuple[Any, ...]:
    return norm.op, norm.attrs["eps"], tuple(norm.params)


FUSION = Fusion(op="fused_mix", roots=("mix",), match=match, fires_on=("mudd-pythia-test",))
