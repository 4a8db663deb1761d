"""The mean over the tokens of every sequence."""

from __future__ import annotations

from typing import Any

from multiway.compiler.op import Attr, Op, Reject, Sample


def mean_tokens(x: Any, padding: Any = None, *, skip: int) -> Any:
    if padding is None:
        return x[:, skip:].mean(1)
    kept = (~padding[:, skip:, None]).to(x.dtype)
    return (x[:, skip:] * kept).sum(1) / kept.sum(1).clamp(min=1)


OP = Op(
    signature="x[B,T,D], padding?[B,T]:bool -> y[B,D]",
    reference=mean_tokens,
    doc="Padded tokens and the first `skip` are left out.",
    attrs={"skip": Attr("leading tokens that do not count", 0)},
    flops=lambda n: n["B"] * n["T"] * n["D"],
    samples=[Sample(shapes={"x": (2, 3, 4)}, attrs={"skip": 1})],
    rejects=[Reject(shapes={"x": (2, 3)}, error="x has 2 axes, needs [B,T,D]: [2,3]")],
)
