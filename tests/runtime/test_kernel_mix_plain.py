"""Where the mix in torch's operators puts the gradients of its sources."""

from __future__ import annotations

import pytest
import torch
from mixing import history_of, leaves, reference
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.blas import batch
from multiway.runtime.kernels.mix import mix, plain
from multiway.runtime.kernels.mix.plan import Inputs, Plan, Wanted

pytestmark = pytest.mark.usefixtures("in_double")

PLAN = Plan(norm="", eps=0.0, normed=(), raw=(0, 2))  # of three ways one that nobody reads
SOURCES = 5
SHAPE = (2, 3, 4)


def places(kind: str) -> list[Tensor | None]:
    """Buffers of the sources, None for new ones."""
    room = torch.randn(SOURCES * 2, *SHAPE)
    if kind == "one behind the other":
        return list(room[:SOURCES])
    if kind == "with gaps":
        return list(room[::2])
    if kind == "the other way round":
        return list(room[:SOURCES].flip(0).unbind())
    if kind == "one by one":
        return [each.clone() for each in room[:SOURCES]]
    if kind == "some are new":
        return [room[0], room[1], None, None, room[5]]
    return [None] * SOURCES


KINDS = (
    "new",
    "one behind the other",
    "with gaps",
    "the other way round",
    "one by one",
    "some are new",
)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("skipped", [(), (0,), (2,), (1, 3, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_added_wherever_they_lie(
    kind: str, skipped: tuple[int, ...], shared: bool, apart: bool
) -> None:
    history = leaves(SOURCES, *SHAPE)
    (weights,) = leaves(1, *(() if shared else SHAPE[:-1]), 3, SOURCES)
    grads = [torch.randn(SHAPE), torch.randn(SHAPE)]
    outputs = reference(history, weights, norm="", eps=0.0, normed=(), raw=PLAN.raw)
    *of_sources, of_weights = torch.autograd.grad(outputs, [*history, weights], grads)
    into = places(kind)
    before = [0 if x is None else x.clone() for x in into]
    wanted = Wanted(
        sources=[i not in skipped for i in range(SOURCES)], weights=True, into=into, apart=apart
    )
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
    new = [
        x for x, place in zip(found.sources, into, strict=True) if x is not None and place is None
    ]
    storages = {x.untyped_storage().data_ptr() for x in new}
    assert len(storages) == (len(new) if apart else min(len(new), 1))


def test_a_mix_adds_to_all_its_sources_in_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, bool]] = []
    by_mkl = batch._by_mkl

    def spy(a: Tensor, b: Tensor, out: Tensor, add: bool) -> bool:
        made.append((out.shape[1], add))
        return by_mkl(a, b, out, add)

    hiddens = [x * 1 for x in leaves(4, *SHAPE)]
    with native.disabled():
        history = history_of(hiddens)
        pair = [mix(history, leaves(1, *SHAPE[:-1], 1, 4)[0])[0] for _ in range(2)]
        monkeypatch.setattr(batch, "_by_mkl", spy)
        sum(pair).sum().backward()  # type: ignore[union-attr]
    assert made == [(4, False), (4, True)]
