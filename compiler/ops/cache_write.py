"""Writes new keys or values into a cache of fixed length."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Op, Reject, Sample


def cache_write(cache: Any, new: Any, slots: Any) -> Any:
    index = slots[:, None, :, None].expand(new.shape)
    return cache.scatter(2, index, new)


def formula(cache: Any, new: Any, slots: Any) -> Any:
    import numpy as np

    written = cache.copy()
    for b, t in np.ndindex(new.shape[0], new.shape[2]):
        written[b, :, slots[b % len(slots), t]] = new[b, :, t]
    return written


OP = Op(
    signature="cache[B,K,S,E], new[B,K,T,E], slots[P,T]:int -> cache[B,K,S,E]",
    reference=cache_write,
    formula=formula,
    doc="A cache with `new` at `slots`; what stood there before is gone.",
    samples=[
        Sample(shapes={"cache": (2, 3, 5, 4), "new": (2, 3, 1, 4), "slots": (2, 1)}, below=5),
        Sample(
            shapes={"cache": (2, 3, 5, 4), "new": (2, 3, 2, 4), "slots": (2, 2)},
            values={"slots": [[3, 0], [1, 4]]},
        ),
    ],
    rejects=[
        Reject(
            shapes={"cache": (2, 3, 5, 4), "new": (2, 2, 1, 4), "slots": (2, 1)},
            error="K is 3 in cache but 2 in new",
        )
    ],
)
