"""Where the mix in torch's operators puts the gradients of its sources."""

from __future__ import annotations

import pytest
import torch
from mixing import leaves, reference
from pairs import pairs
from torch import Tensor

from multiway.runtime.kernels.mix import plain
from multiway.runtime.kernels.mix.plan import Inputs, Plan, Wanted

pytestmark = pytest.mark.usefixtures("in_double")

PLAN = Plan(norm="", eps=0.0, normed=(), raw=(0, 2))  # of three ways one that nobody reads
SOURCES = 5
SHAPE = (2, 3, 4)


def places(kind: str) -> list[Tensor | None]:
    """Buffers of the sources, None for new ones."""
    made: list[Tensor | None] = list(torch.randn(SOURCES, *SHAPE))
    if kind == "with gaps":
        return list(torch.randn(SOURCES * 2, *SHAPE)[::2])
    if kind == "some are new":
        made[2:4] = [None, None]
    return [None] * SOURCES if kind == "new" else made


KINDS = ("new", "one behind the other", "with gaps", "some are new")


@pairs(
    kind=list(KINDS),
    skipped=[(), (0,), (2,), (1, 3, 4)],
    shared=[False, True],
    elements=[7, 1 << 21],  # of products in one piece: one token's, or all
)
def test_gradients_are_added_wherever_they_lie(
    kind: str,
    skipped: tuple[int, ...],
    shared: bool,
    elements: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plain, "CACHED_ELEMENTS", elements)
    history = leaves(SOURCES, *SHAPE)
    (weights,) = leaves(1, *(() if shared else SHAPE[:-1]), 3, SOURCES)
    grads = [torch.randn(SHAPE), torch.randn(SHAPE)]
    outputs = reference(history, weights, norm="", eps=0.0, normed=(), raw=PLAN.raw)
    *of_sources, of_weights = torch.autograd.grad(outputs, [*history, weights], grads)
    into = places(kind)
    before = [0 if x is None else x.clone() for x in into]
    wanted = Wanted(sources=[i not in skipped for i in range(SOURCES)], weights=True, into=into)
    inputs = Inputs(
        history=[x.detach() for x in history], weights=weights.detach(), gains=(), biases=()
    )
    found = plain.backward(grads, inputs, PLAN, wanted)
    torch.testing.assert_close(found.weights, of_weights)
    for i, (grad, place) in enumerate(zip(found.sources, into, strict=True)):
        if i in skipped:
            assert grad is None and (place is None or torch.equal(place, before[i]))  # type: ignore[arg-type]
            continue
        assert grad is not None and (place is None or grad is place)
        torch.testing.assert_close(grad, before[i] + of_sources[i])
