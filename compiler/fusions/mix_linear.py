"""A depth mix with the linears of its normalised streams, which backward computes again.

The streams are read by one linear each, which needs them again for the gradient of its weight.
Kept, they are what a wiring costs in memory; made again from hiddens that are kept anyway, they
cost one more reading of the history.
"""

from __future__ import annotations

from typing import Any

from multiway.compiler.compose import call as f
from multiway.compiler.fusion import Fusion, Match, params_list
from multiway.compiler.graph import LayerGraph, Record, Value, block_of, grouped
from multiway.compiler.init import NORMAL, ONES, ZEROS
from multiway.compiler.op import Attr, Op, Reject, Sample


def mix_linear(
    history: Any,
    weights: Any,
    gains: Any = None,
    biases: Any = None,
    matrices: Any = None,
    shifts: Any = None,
    *,
    norm: str,
    eps: float,
    normed: list[int],
    raw: list[int],
) -> Any:
    settings = {"norm": norm, "eps": eps, "normed": normed, "raw": raw}
    streams = f.fused_mix(history, weights, gains, biases, **settings)
    found = [
        f.linear(streams[i], matrix, shifts[i] if shifts else None)
        for i, matrix in enumerate(matrices)
    ]
    return (*found, *streams[len(normed) :])


OP = Op(
    signature=(
        "history[L,B,T,D]:list, weights[*,C,L], gains+?[D], biases+?[D], matrices+?[F+,D],"
        " shifts+?[F+] -> y+[B,T,F+], raw{R}[B,T,D]"
    ),
    reference=mix_linear,
    doc=(
        "fused_mix, with a linear of each normalised stream. Backward needs the history and the "
        "mixing weights only."
    ),
    attrs={
        "norm": Attr("layer_norm or rms_norm"),
        "eps": Attr("of the norms", 1e-5),
        "normed": Attr("ways that are normalised"),
        "raw": Attr("ways that are given as they are", letter="R"),
    },
    params={"gains": ONES, "biases": ZEROS, "matrices": NORMAL, "shifts": ZEROS},
    saves=("history", "weights"),
    composed=True,
    samples=[
        Sample(
            shapes={
                "history": [(2, 3, 4)] * 3,
                "weights": (2, 3, 2, 3),
                "gains": [(4,)] * 2,
                "biases": [(4,)] * 2,
                "matrices": [(5, 4), (2, 4)],
                "shifts": [(5,), (2,)],
            },
            attrs={"norm": "layer_norm", "eps": 1e-5, "normed": [1, 0], "raw": [1]},
        ),
        Sample(
            shapes={
                "history": [(2, 3, 4)] * 3,
                "weights": (2, 3),
                "gains": [(4,)],
                "matrices": [(5, 4)],
            },
            attrs={"norm": "rms_norm", "eps": 1e-6, "normed": [0], "raw": []},
        ),
    ],
    rejects=[
        Reject(
            shapes={
                "history": [(2, 3, 4)] * 3,
                "weights": (2, 3),
                "matrices": [(5, 6)],
            },
            attrs={"norm": "rms_norm", "eps": 1e-6, "normed": [0], "raw": []},
            error="D is 4 in history but 6 in matrices.0",
        )
    ],
    cite="arXiv:2502.12170",
)


def match(graph: LayerGraph, mix: Record) -> Match | None:
    """A fused mix of a block whose normalised streams have one linear each, all of one form."""
    count = len(mix.attrs["normed"])
    linears = [_linear(graph, Value(mix.path, port)) for port in range(count)]
    found = [record for record in linears if record is not None]
    if not found or len(found) < count or len({tuple(r.params) for r in found}) > 1:
        return None
    params = dict(mix.params)
    for role, many in (("weight", "matrices"), ("bias", "shifts")):
        if role in found[0].params:
            params |= params_list(many, [record.params[role] for record in found])
    raws = [Value(mix.path, port) for port in range(count, len(mix.outputs))]
    return Match(
        at=mix.path,
        record=Record(
            path=mix.path, op="mix_linear", attrs=mix.attrs, params=params, span=mix.span
        ),
        arguments=graph.arguments(mix.path),
        outputs=(*(Value(record.path) for record in found), *raws),
        nodes=frozenset({mix.path, *(record.path for record in found)}),
    )


def _linear(graph: LayerGraph, stream: Value) -> Record | None:
    """The only reader of a stream, if it is a linear of the same block."""
    readers = graph.readers(stream)
    if len(readers) != 1 or block_of(readers[0][0]) != block_of(stream.path):
        return None
    record = graph.record(readers[0][0])
    good = record.op == "linear" and "weight" in grouped(record.params) and block_of(stream.path)
    return record if good and len(graph.sources(record.path)) == 1 else None


FUSION = Fusion(op="mix_linear", by="plan_memory", roots=("fused_mix",), match=match)
