"""Takes the batches of join_batch apart again."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def split_batch(x: Any, *, parts: int) -> Any:
    return x.unflatten(0, (parts, -1)).unbind(0)  # chunk would fix the batch size in an export


def formula(x: Any, *, parts: int) -> Any:
    size = len(x) // parts
    return [x[i * size : (i + 1) * size] for i in range(parts)]


OP = Op(
    signature="x[N*B,*] -> part{N}[B,*]",
    reference=split_batch,
    formula=formula,
    doc="The inverse of join_batch for parts of equal size.",
    attrs={"parts": Attr("number of batches", letter="N")},
    memory="view",
    samples=[
        Sample(shapes={"x": (4, 3)}, attrs={"parts": 2}),
        Sample(shapes={"x": (6, 3)}, attrs={"parts": 3}),
    ],
    rejects=[
        Reject(shapes={"x": (5, 3)}, attrs={"parts": 2}, error="x: 5 is not a multiple of N = 2")
    ],
)
