"""Which keys may be seen: those that are not padding."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def padding_mask(padding: Any) -> Any:
    return ~padding[:, None, None, :]


def formula(padding: Any) -> Any:
    import numpy as np

    return np.array([[[[not each for each in row]]] for row in padding])


OP = Op(
    signature="padding[B,S]:bool -> mask[B,1,1,S]:bool",
    reference=padding_mask,
    formula=formula,
    doc="True for keys that are not padding.",
    samples=[Sample(shapes={"padding": (2, 3)})],
    rejects=[Reject(shapes={"padding": (2,)}, error="padding has 1 axes, needs [B,S]: [2]")],
)
