"""The outputs of experts, weighed by the gates of a router."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def mix_experts(xs: Any, gates: Any, *, most: int) -> Any:
    return (gates.unsqueeze(-1) * xs).sum(-2)


def formula(xs: Any, gates: Any, *, most: int) -> Any:
    import numpy as np

    return np.einsum("...x,...xd->...d", gates, xs)


OP = Op(
    signature="xs[*,X,D], gates[*,X] -> y[*,D]",
    reference=mix_experts,
    formula=formula,
    doc=(
        "The sum over experts of gate times output. An expert whose gate is 0 adds nothing, and a "
        "kernel does not ask it; `most` says how many of a token's gates are another number."
    ),
    attrs={"most": Attr("gates of a token that are not 0, at most; 0: any number", 0, hint=True)},
    flops=lambda n: 2 * n["*"] * n["X"] * n["D"],
    tokenwise=("xs", "gates"),
    saves=("xs", "gates"),
    samples=[
        Sample(shapes={"xs": (2, 3, 2, 4), "gates": (2, 3, 2)}, attrs={"most": 2}),
        Sample(shapes={"xs": (3, 2, 4), "gates": (3, 2)}, attrs={"most": 0}),
    ],
    rejects=[
        Reject(
            shapes={"xs": (2, 3, 4), "gates": (2, 4)},
            attrs={"most": 1},
            error="X is 3 in xs but 4 in gates",
        )
    ],
    cite="arXiv:1701.06538",
)
