"""Mixing weights over depth: learned ones plus those made from the token."""

from __future__ import annotations

from typing import Any

from multiway.compiler.init import NEWEST
from multiway.compiler.op import Attr, Op, Reject, Sample


def depth_weights(dynamic: Any = None, static: Any = None, *, ways: int) -> Any:
    if dynamic is None:
        return static
    dynamic = dynamic.unflatten(-1, (ways, -1))
    return dynamic if static is None else dynamic + static


OP = Op(
    signature="dynamic?[*,C*L], static?[C,L] -> weights[*,C,L]",
    reference=depth_weights,
    doc="Way-major: entry c * L + l of `dynamic` weighs source l in way c.",
    attrs={"ways": Attr("number of sums", letter="C")},
    params={"static": NEWEST},
    tokenwise=("dynamic",),
    samples=[
        Sample(shapes={"dynamic": (2, 3, 8), "static": (2, 4)}, attrs={"ways": 2}),
        Sample(shapes={"static": (2, 4)}, attrs={"ways": 2}),
        Sample(shapes={"dynamic": (2, 3, 8)}, attrs={"ways": 2}),
    ],
    rejects=[
        Reject(
            shapes={"dynamic": (2, 3, 8), "static": (2, 5)},
            attrs={"ways": 2},
            error="L is 4 in dynamic but 5 in static",
        )
    ],
    cite="arXiv:2502.12170",
)
