"""Gates of a router that knows the number of a token and nothing else."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample

# A prime near 2^31 / golden ratio: multiples of it spread evenly. Products stay within 64 bits.
FACTOR, MODULUS = 1_327_217_885, (1 << 31) - 1


def hash_gates(x: Any, tokens: Any, *, count: int, seed: int) -> Any:
    import torch

    expert = ((tokens + 1) * FACTOR + seed) % MODULUS * FACTOR % MODULUS % count
    return torch.nn.functional.one_hot(expert, count).to(x.dtype)


def formula(x: Any, tokens: Any, *, count: int, seed: int) -> Any:
    import numpy as np

    gates = np.zeros((*tokens.shape, count))
    for at in np.ndindex(tokens.shape):
        mixed = ((int(tokens[at]) + 1) * 1327217885 + seed) % (2**31 - 1)
        gates[at][mixed * 1327217885 % (2**31 - 1) % count] = 1
    return gates


OP = Op(
    signature="x[*,D], tokens[*]:int -> gates[*,X]",
    reference=hash_gates,
    formula=formula,
    doc=(
        "1 for the expert that a hash of the token's number gives, 0 for the others: "
        "((t + 1) a + seed mod m) a mod m mod experts, with a = 1327217885 and m = 2^31 - 1. "
        "x says of which type gates are."
    ),
    attrs={
        "count": Attr("number of experts", letter="X"),
        "seed": Attr("of the hash", 0),
    },
    tokenwise=("x", "tokens"),
    samples=[
        Sample(shapes={"x": (2, 3, 4), "tokens": (2, 3)}, attrs={"count": 3, "seed": 0}),
        Sample(shapes={"x": (3, 4), "tokens": (3,)}, attrs={"count": 4, "seed": 12345}),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 4), "tokens": (2, 2)},
            attrs={"count": 2},
            error="* is [2,3] in x but [2,2] in tokens",
        )
    ],
    cite="arXiv:2106.04426",
)
