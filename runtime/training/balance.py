"""What routers did, in numbers that a person can use, and balance without a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.model import Model


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one router did with the tokens of a batch."""

    load: Tensor  # [experts] the part of all choices that was for each; even use gives 1 / experts
    probability: Tensor  # [experts] mean probability
    entropy: float  # of the probabilities of a token, in nats, on average; log(experts) at most
    z: float  # mean square of log sum exp of the logits
    dropped: float  # the part of all choices that found no place
    experts: float  # of a token, on average, dropped ones not counted


def summary(taps: Mapping[str, Tensor]) -> dict[str, Summary]:
    """Fractions and means by the path of the router, from what the tap `routers` gave.

    Raises KeyError where a statistic of a router is missing.
    """
    paths = [tap.removesuffix(".load") for tap in taps if tap.endswith(".load")]
    return {path: _summary(path, taps) for path in paths}


def _summary(path: str, taps: Mapping[str, Tensor]) -> Summary:
    def total(name: str) -> Tensor:
        return taps[f"{path}.{name}"].detach().sum(0)

    load, tokens, dropped = total("load"), total("tokens").clamp(min=1), total("dropped")
    chosen = load.sum()
    return Summary(
        load=load / chosen.clamp(min=1),
        probability=total("probability") / tokens,
        entropy=float(total("entropy") / tokens),
        z=float(total("z") / tokens),
        dropped=float(dropped / chosen.clamp(min=1)),
        experts=float((chosen - dropped) / tokens),
    )


@torch.no_grad()
def update_balance(model: Model, load: Mapping[str, Tensor]) -> None:
    """Moves the biases of routers after a step (`balance_bias`, arXiv:2408.15664).

    load: `metrics["load"]` of the step: by the path of the biases, tokens [B, experts]. With
    several processes, sums over all of them. An expert with fewer tokens than the mean gets `rate`
    more, one with more tokens `rate` less. Raises KeyError for a path that the model does not have.
    """
    for path, tokens in load.items():
        rate = model.balance_rates[path]
        biases, count = model.get_parameter(path), tokens.sum(0)
        biases.add_((torch.sign(count.mean() - count) * rate).to(biases.dtype))
