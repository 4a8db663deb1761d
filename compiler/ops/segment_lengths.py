"""How many tokens each segment of a joined sequence has."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def segment_lengths(parts: Any) -> Any:
    return [part.shape[1] for part in parts]


def formula(parts: Any) -> Any:
    return [len(part[0]) for part in parts]


OP = Op(
    signature="parts+[B,T+,D] -> sizes[T+]:sizes",
    reference=segment_lengths,
    formula=formula,
    doc="Read off the segments when the program runs, so that no length is baked in.",
    memory="sizes",
    samples=[Sample(shapes={"parts": [(2, 3, 4), (2, 1, 4)]})],
    rejects=[
        Reject(
            shapes={"parts": [(2, 3, 4), (2, 1, 5)]},
            error="D is 4 in parts.0 but 5 in parts.1",
        )
    ],
)
