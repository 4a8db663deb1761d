"""The definition of the depth mix, written out in the fewest words, and random cases of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.mix import History, append, fused_mix

double = torch.float64


def reference(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    norm: str,
    eps: float,
    normed: Sequence[int],
    raw: Sequence[int],
) -> tuple[Tensor, ...]:
    """What a mix means."""

    def stream(c: int) -> Tensor:
        return sum(weights[..., c, i, None] * x for i, x in enumerate(history))  # type: ignore

    def normalised(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if norm == "layer_norm":
            wide = wide - wide.mean(-1, keepdim=True)
        return (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)

    made = []
    for i, c in enumerate(normed):
        y = normalised(stream(c))
        y = y * gains[i] if gains else y
        made.append(y + biases[i] if biases else y)
    return (*made, *(stream(c) for c in raw))


@dataclass(kw_only=True)
class Case:
    """Arguments of one mix, all leaves."""

    history: list[Tensor]
    weights: Tensor
    gains: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    plan: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.history, self.weights, *self.gains, *self.biases]

    def run(self, function: Callable[..., Any], history: Any = None) -> tuple[Tensor, ...]:
        history = self.history if history is None else history
        return function(history, self.weights, self.gains, self.biases, **self.plan)

    def to(self, dtype: torch.dtype) -> Case:
        return Case(
            history=cast(self.history, dtype),
            weights=cast([self.weights], dtype)[0],
            gains=cast(self.gains, dtype),
            biases=cast(self.biases, dtype),
            plan=self.plan,
        )


def draw(seed: int) -> Case:
    """A random mix in float64. Odd widths, no tokens, ways that repeat or that nobody reads."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    sources, ways, width = r.randint(1, 9), r.randint(1, 9), r.choice([1, 5, 16, 40, 128, 257])
    shape = r.choice([1, 2]), r.choice([0, 1, 3, 70]), width
    norm = r.choice(["layer_norm", "rms_norm", ""])
    normed = [r.randrange(ways) for _ in range(r.randint(0, 4))] if norm else []
    raw = [r.randrange(ways) for _ in range(r.randint(0 if normed else 1, 3))]
    raw = list(range(ways)) if r.random() < 0.3 else raw
    shared = r.random() < 0.4
    vectors = [leaves(len(normed), width) if r.random() < 0.5 else [] for _ in range(2)]
    return Case(
        history=[strided(shape, r.choice("ctse")) for _ in range(sources)],
        weights=torch.randn(*(() if shared else shape[:2]), ways, sources).requires_grad_(),
        gains=vectors[0],
        biases=vectors[1],
        plan={"norm": norm, "eps": 1e-5, "normed": normed, "raw": raw},
    )


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Leaves of another type with these values."""
    return [x.detach().to(dtype).requires_grad_() for x in tensors]


def leaves(count: int, *shape: int) -> list[Tensor]:
    return [torch.randn(*shape).requires_grad_() for _ in range(count)]


def strided(shape: tuple[int, int, int], kind: str) -> Tensor:
    """A leaf: contiguous, transposed, a slice of wider rows, or one row expanded."""
    batch, length, width = shape
    if kind == "t":
        x = torch.randn(length, batch, width).transpose(0, 1)
    elif kind == "s":
        x = torch.randn(batch, length, width + 3)[..., 1 : width + 1]
    elif kind == "e":
        x = torch.randn(batch, 1, width).expand(shape)
    else:
        x = torch.randn(shape)
    return x.detach().requires_grad_()


def history_of(hiddens: Sequence[Tensor], capacity: int = 0) -> History:
    history = None
    for x in hiddens:
        history = append(history, x, capacity=capacity or len(hiddens))
    assert isinstance(history, History)
    return history


def loss_of(outputs: Sequence[Tensor], seed: int = 0) -> Tensor:
    """A sum over some of the outputs; a transposed gradient comes back for every other one."""
    generator = torch.Generator().manual_seed(seed)
    total = outputs[0].new_zeros(())
    for i, y in enumerate(outputs):
        batch, length, width = y.shape
        cotangent = torch.randn(length, batch, width, generator=generator, dtype=double)
        cotangent = cotangent.to(y.dtype).transpose(0, 1)
        if (seed + i) % 3 or len(outputs) == 1:
            total = total + (y * (cotangent if i % 2 else cotangent.contiguous())).sum()
    return total


def grads_of(loss: Tensor, inputs: Sequence[Tensor], **more: Any) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(inputs), allow_unused=True, **more)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def network(hiddens: list[Tensor], parameters: Sequence[Tensor], *, tracked: bool) -> Tensor:
    """Blocks over a history that also reads entries by itself, as skip connections do."""
    history: Any = None if tracked else []
    x = hiddens[0]
    for depth, weights in enumerate(parameters):
        history = append(history, x, capacity=9) if tracked else [*history, x]
        function = fused_mix if tracked else reference
        plan = {"norm": "rms_norm", "eps": 1e-5, "normed": [0], "raw": [1]}
        a, b = function(history, weights[:, : depth + 1], **plan)
        x = torch.tanh(a) + b + hiddens[depth + 1] + 0.5 * history[depth // 2]
    return (x * x).sum()


def mix_reference(history: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    ways = range(weights.shape[-2])
    return reference(history, weights, norm="", eps=0.0, normed=[], raw=ways)


def arguments(seed: int, norm: str = "rms_norm") -> tuple[Any, ...]:
    torch.manual_seed(seed)
    shared: Any = () if seed % 2 else (2, 3)
    normed, raw = ([0, 2, 0], [1, 2]) if norm else ([], [1, 0])
    vectors = [leaves(len(normed), 5) if seed % 3 != k else [] for k in (1, 2)]
    weights = torch.randn(*shared, 3, 4).requires_grad_()
    return leaves(4, 2, 3, 5), weights, *vectors, norm, 1e-5, normed, raw
