"""A model in Accelerate, as docs/integrations.md shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accelerate import Accelerator
from torch import nn, optim


def train(
    accelerator: Accelerator, model: nn.Module, optimizer: optim.Optimizer, batches: Iterable[Any]
) -> list[float]:
    """The loss of every step."""
    losses = []
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for batch in batches:
        loss, _ = model(**batch, program="loss")
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
