"""Takes the batches of join_batch apart again."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Attr, Op, Reject, Sample


def split_batch(x: Any, *, parts: int) -> Any:
    return x.unflatten(0, (parts, -1)).unbind(0)  # chunk would fix the batch size in an export


OP = Op(
    signature="x[N*B,*] -> part{N}[B,*]",
    reference=split_batch,
    doc="The inverse of join_batch for parts of equal size.",
    attrs={"parts": Attr("number of batches", letter="N")},
    memory="view",
    samples=[Sample(shapes={"x": (4, 3)}, attrs={"parts": 2})],
    rejects=[
        Reject(shapes={"x": (5, 3)}, attrs={"parts": 2}, error="x: 5 is not a multiple of N = 2")
    ],
)
