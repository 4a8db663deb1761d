"""Mixing weights over depth: learned ones plus those made from the token."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NEWEST
from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def depth_weights(dynamic: Any = None, static: Any = None, *, ways: int) -> Any:
    if dynamic is None:
        return static
    dynamic = dynamic.unflatten(-1, (ways, -1))
    return dynamic if static is None else dynamic + static


def formula(dynamic: Any = None, static: Any = None, *, ways: int) -> Any:
    import numpy as np

    if dynamic is None:
        return static
    sources = dynamic.shape[-1] // ways
    y = np.stack([dynamic[..., c * sources : (c + 1) * sources] for c in range(ways)], -2)
    return y if static is None else np.add(y, static)


OP = Op(
    signature="dynamic?[*,C*L], static?[C,L] -> weights[*,C,L]",
    reference=depth_weights,
    formula=formula,
    doc="Way-major: entry c * L + l of `dynamic` weighs source l in way c.",
    attrs={"ways": Attr("number of sums", letter="C")},
    params={"static": NEWEST},
    tokenwise=("dynamic",),
    samples=[
        Sample(shapes={"dynamic": (2, 3, 8), "static": (2, 4)}, attrs={"ways": 2}),
        Sample(shapes={"static": (2, 4)}, attrs={"ways": 2}),
        Sample(shapes={"dynamic": (2, 3, 8), "static": (4, 2)}, attrs={"ways": 4}),
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
