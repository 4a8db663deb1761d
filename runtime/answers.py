"""How a head answers an example. Heads import this before torch is there, so it imports none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `multiway predict` does with a head. The head makes it; the compiled model carries it.

    A model must pickle, so both functions stand in a module, and what they need of the spec is
    bound with functools.partial. Each takes one `Request` (runtime/tasks/predict.py).

    predict: the answer as plain data that JSON can hold. Raises MultiwayError.
    embed: the embedding [width] of each input that was given; None: the head has no embeddings.
    optional: inputs of the spec that an example may leave out.
    continues: the input of token ids that `multiway generate` continues; None: it continues none.
    end_token: whether the bytes of a text end with the end token, as a text does that is read as a
        whole; a head that writes on behind it says False.
    """

    predict: Callable[..., dict[str, Any]]
    embed: Callable[..., dict[str, torch.Tensor]] | None = None
    optional: tuple[str, ...] = ()
    continues: str | None = None
    end_token: bool = True


def most_likely(probabilities: torch.Tensor, count: int) -> list[dict[str, Any]]:
    """The ids of the `count` largest of probabilities [V] with their values, the largest first."""
    best = probabilities.topk(min(count, probabilities.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"id": i, "probability": round(p, 6)} for i, p in pairs]
