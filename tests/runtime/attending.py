"""What the tests of attention over depth share: its definition, written out once more in the fewest
words, and random calls of it. float64 decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mixing import cast, leaves, mix_reference, strided
from torch import Tensor

from multiway.runtime.kernels.depth_attention import depth_attention
from multiway.runtime.kernels.mix import append, mix

PLAN = {"groups": 2, "eps": 1e-3, "norm": "rms_norm", "norm_eps": 1e-2, "normed": 1, "raw": 1}
RAW = {**PLAN, "norm": "", "normed": 0}


def normalised(x: Tensor, norm: str, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm == "layer_norm":
        wide = wide - wide.mean(-1, keepdim=True)
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()


def reference(
    history: Sequence[Tensor],
    query: Tensor,
    weight: Tensor | None = None,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    groups: int,
    eps: float,
    norm: str,
    norm_eps: float,
    normed: int,
    raw: int,
) -> tuple[Tensor, ...]:
    """What attention over depth means."""
    whole = (
        query
        if weight is None
        else query.to(torch.promote_types(query.dtype, torch.float32)) * weight
    )
    keys = torch.stack([normalised(x, "rms_norm", eps) * whole for x in history])
    scores = keys.unflatten(-1, (groups, -1)).sum(-1)
    weights = scores.softmax(0).to(history[0].dtype).unsqueeze(-1)
    parts = torch.stack(list(history)).unflatten(-1, (groups, -1))
    y = (weights * parts).sum(0).flatten(-2)
    made = []
    for i in range(normed):
        z = normalised(y, norm, norm_eps).to(y.dtype)
        z = z * gains[i] if gains else z
        made.append(z + biases[i] if biases else z)
    return (*made, *[y] * raw)


@dataclass(kw_only=True)
class Case:
    """Arguments of one call, all leaves."""

    history: list[Tensor]
    query: Tensor
    weight: Tensor | None = None
    gains: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    plan: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        weight = [] if self.weight is None else [self.weight]
        return [*self.history, self.query, *weight, *self.gains, *self.biases]

    def run(self, function: Callable[..., Any], history: Any = None) -> tuple[Tensor, ...]:
        history = self.history if history is None else history
        return function(history, self.query, self.weight, self.gains, self.biases, **self.plan)

    def to(self, dtype: torch.dtype) -> Case:
        return Case(
            history=cast(self.history, dtype),
            query=cast([self.query], dtype)[0],
            weight=None if self.weight is None else cast([self.weight], dtype)[0],
            gains=cast(self.gains, dtype),
            biases=cast(self.biases, dtype),
            plan=self.plan,
        )


def draw(seed: int) -> Case:
    """A random call in float64. Odd widths, no tokens, one source, all strides."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    groups, each = r.choice([1, 1, 2, 3, 4]), r.choice([1, 5, 8, 16, 40, 67])
    sources, width = r.randint(1, 11), groups * each
    shape = r.choice([1, 2]), r.choice([0, 1, 3, 70]), width
    norm = r.choice(["layer_norm", "rms_norm", ""])
    normed = r.randint(0, 3) if norm else 0
    raw = int(not normed or r.random() < 0.4)
    vectors = [leaves(normed, width) if r.random() < 0.6 else [] for _ in range(2)]
    settings = {"groups": groups, "eps": 1e-3, "norm": norm, "norm_eps": 1e-2}
    return Case(
        history=[strided(shape, r.choice("ctse")) for _ in range(sources)],
        query=(torch.randn(width) * r.choice([0.1, 1, 20])).requires_grad_(),
        weight=leaves(1, width)[0] if r.random() < 0.6 else None,
        gains=vectors[0],
        biases=vectors[1],
        plan={**settings, "normed": normed, "raw": raw},
    )


def network(hiddens: list[Tensor], parameters: Sequence[Tensor], *, tracked: bool) -> Tensor:
    """Sublayers over a history that mixes read too, and that are read by themselves."""
    history: Any = None if tracked else []
    x = hiddens[0]
    for depth, query in enumerate(parameters):
        history = append(history, x, capacity=9) if tracked else [*history, x]
        plan = {**PLAN, "groups": 1 + depth % 2}
        a, b = (depth_attention if tracked else reference)(history, query[:12], **plan)
        if depth % 2:
            weights = query[12 : 13 + depth][None]
            function = mix if tracked else mix_reference
            b = b + function(history, weights)[0]
        x = torch.tanh(a) + b + hiddens[depth + 1] + 0.5 * history[depth // 2]
    return (x * x).sum()
