"""The end of one site of parallel lanes and the beginning of the next: one pass over the lanes.

A site reads its lanes, runs a sublayer, mixes the lanes and writes to them. Cut between reading and
writing, everything from one sublayer's output to the next one's input is a single op, which reads
the old lanes once and writes the new ones once.
"""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ONES, ZEROS, Init
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.lanes import match
from multiway.compiler.matching.match import Fusion


def fused_lanes(
    lanes: Any,
    y: Any = None,
    mix: Any = None,
    write: Any = None,
    read: Any = None,
    gain: Any = None,
    bias: Any = None,
    matrices: Any = None,
    shifts: Any = None,
    scales: Any = None,
    statics: Any = None,
    biases: Any = None,
    gains: Any = None,
    offsets: Any = None,
    *,
    ends: str,
    weights: str,
    eps: float,
    factors: list[float],
    floors: list[float],
    balance: dict[str, Any],
    norm: str,
    norm_eps: float,
    kept: int,
    goes_on: int,
    reads: int,
    normed: int,
    raw: int,
) -> Any:
    if ends:
        lanes = getattr(f, f"write_{ends}")(f.mix_lanes(lanes, mix), y, write)
    made = [read]
    if weights == "tanh":
        z = f.layer_norm(lanes, gain, bias, eps=eps)
        made = []
        for i, matrix in enumerate(matrices):
            active = f.activation(_linear(z, matrix, shifts, i), kind="tanh")
            made.append(f.lane_weights(active, scales[i], statics[i]))
    elif weights == "gates":
        v = f.rms_norm(f.join_lanes(lanes), gain, bias, eps=eps)
        zs = [_linear(v, matrix, shifts, i) for i, matrix in enumerate(matrices)]
        given = list(zip(zs, scales, biases, strict=True))
        made = [f.lane_gate(*given[0], factor=factors[0], eps=floors[0])]
        if goes_on:
            made.append(f.sinkhorn(*given[1], **balance))
            made.append(f.lane_gate(*given[2], factor=factors[1], eps=floors[1]))
    found = [lanes] * kept + made[1:]
    if reads:
        x = f.sum_lanes(lanes) if weights == "sum" else f.read_lanes(lanes, made[0])
        for i in range(normed):
            affine = (each[i] if each else None for each in (gains, offsets))
            found.append(getattr(f, norm)(x, *affine, eps=norm_eps))
        found += [x] * raw
    return tuple(found)


def _linear(x: Any, matrix: Any, shifts: Any, i: int) -> Any:
    return f.linear(x, matrix, shifts[i] if shifts else None)


_PLAIN = {
    "ends": "",
    "weights": "",
    "eps": 1e-5,
    "factors": [1.0, 1.0],
    "floors": [0.0, 0.0],
    "balance": {},
    "norm": "",
    "norm_eps": 1e-5,
    "kept": 0,
    "goes_on": 0,
    "reads": 0,
    "normed": 0,
    "raw": 0,
}
_BALANCE = {"count": 2, "start": "softmax", "iterations": 3, "eps": 1e-6, "transpose": False}

OP = Op(
    signature=(
        "lanes[B,T,N,D], y?[B,T,Y], mix?[*,N,N], write?[*,N,1], read?[*,N,R], gain?[G], bias?[G],"
        " matrices+?[F+,G], shifts+?[F+], scales+?[1], statics+?[N,C+], biases+?[V+], gains+?[U],"
        " offsets+?[U] -> state{K}[B,T,N,D], mixing{M}[B,T,N,N], writing{M}[B,T,N,1],"
        " normed{P}[B,T,R*D], raw{Q}[B,T,R*D]"
    ),
    reference=fused_lanes,
    doc=(
        "Ends a site, if `ends`: mix_lanes and write_lanes (or write_pieces). Begins the next one, "
        "if `reads`: makes its weights, reads the lanes, and normalises what is read."
    ),
    attrs={
        "ends": Attr("how y is written: lanes, pieces, or empty where no site ends", ""),
        "weights": Attr("of the site that begins: tanh, gates, given, sum, or empty", ""),
        "eps": Attr("of the norm that tanh and gates read", 1e-5),
        "factors": Attr("of the gates of read and write", (1.0, 1.0)),
        "floors": Attr("added to the gates of read and write", (0.0, 0.0)),
        "balance": Attr("attributes of sinkhorn, for gates"),
        "norm": Attr("layer_norm, rms_norm, or empty where nothing is normalised", ""),
        "norm_eps": Attr("of that norm", 1e-5),
        "kept": Attr("1 if the lanes are put out", 1, letter="K"),
        "goes_on": Attr("1 if weights of mix and write are made and put out", 0, letter="M"),
        "reads": Attr("mixtures that are read", 0, letter="R"),
        "normed": Attr("norms of what is read", 0, letter="P"),
        "raw": Attr("1 if what is read is put out as it is", 0, letter="Q"),
    },
    params={
        **{"gain": ONES, "bias": ZEROS, "matrices": NORMAL, "shifts": ZEROS},
        **{"scales": Init(kind="constant", value=0.01), "statics": ONES, "biases": ZEROS},
        **{"gains": ONES, "offsets": ZEROS},
    },
    tokenwise=("lanes", "y", "mix", "write", "read"),
    saves=("lanes", "y", "mix", "write", "read"),
    composed=True,
    samples=[
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "mix": (2, 3, 2, 2)},
                **{"write": (2, 3, 2, 1), "gain": (4,), "bias": (4,)},
                **{"matrices": [(1, 4), (2, 4), (1, 4)], "scales": [(1,), (1,), (1,)]},
                **{"statics": [(2, 1), (2, 2), (2, 1)], "gains": [(4,)] * 2, "offsets": [(4,)] * 2},
            },
            attrs={
                **_PLAIN,
                **{"ends": "lanes", "weights": "tanh", "norm": "layer_norm", "kept": 1},
                **{"goes_on": 1, "reads": 1, "normed": 2},
            },
        ),
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 8), "mix": (2, 2), "write": (2, 1)},
                **{"gain": (4,), "bias": (4,), "matrices": [(2, 4), (2, 4), (1, 4)]},
                **{"shifts": [(2,), (2,), (1,)], "scales": [(1,), (1,), (1,)]},
                **{"statics": [(2, 2), (2, 2), (2, 1)], "gains": [(8,)]},
            },
            attrs={
                **_PLAIN,
                **{"ends": "pieces", "weights": "tanh", "norm": "rms_norm", "kept": 1},
                **{"goes_on": 1, "reads": 2, "normed": 1, "raw": 1},
            },
        ),
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "matrices": [(2, 8), (4, 8), (2, 8)]},
                **{"scales": [(1,), (1,), (1,)], "biases": [(2,), (4,), (2,)], "gains": [(4,)]},
            },
            attrs={
                **_PLAIN,
                **{"weights": "gates", "factors": [1.0, 2.0], "floors": [1e-6, 0.0]},
                **{"balance": _BALANCE, "norm": "rms_norm", "goes_on": 1, "reads": 1, "normed": 1},
            },
        ),
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "mix": (2, 3, 2, 2)},
                **{"write": (2, 3, 2, 1), "matrices": [(2, 8)], "scales": [(1,)], "biases": [(2,)]},
            },
            attrs={**_PLAIN, "ends": "lanes", "weights": "gates", "reads": 1, "raw": 1},
        ),
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "mix": (2, 2), "write": (2, 1)},
                **{"read": (2, 1)},
            },
            attrs={
                **_PLAIN,
                **{"ends": "lanes", "weights": "given", "kept": 1, "reads": 1, "normed": 1},
                "norm": "rms_norm",
            },
        ),
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "mix": (2, 3, 2, 2)},
                "write": (2, 3, 2, 1),
            },
            attrs={**_PLAIN, "ends": "lanes", "weights": "sum", "reads": 1, "raw": 1},
        ),
        Sample(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 8), "mix": (2, 3, 2, 2)},
                "write": (2, 3, 2, 1),
            },
            attrs={**_PLAIN, "ends": "pieces", "kept": 1},
        ),
    ],
    rejects=[
        Reject(
            shapes={
                **{"lanes": (2, 3, 2, 4), "y": (2, 3, 4), "mix": (2, 3, 2, 2)},
                "write": (2, 3, 3, 1),
            },
            attrs={**_PLAIN, "ends": "lanes", "kept": 1},
            error="N is 2 in lanes but 3 in write",
        )
    ],
    cite="arXiv:2409.19606",
)

FUSION = Fusion(
    op="fused_lanes",
    roots=("read_lanes", "sum_lanes", "write_lanes", "write_pieces"),
    match=match,
    fires_on=("pythia-test+mhc",),
)
