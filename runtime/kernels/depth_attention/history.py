"""Attention over depth in eager training: sources draw their gradients from the routers' debts.

With L sources a push of each router into its sources' buffers reads and writes L (L + 1) / 2
gradients. Instead a router leaves one gradient, of its average, with the slots of all its sources;
when autograd comes to a source (`mix.history.Append`), all its readers are known, and their
gradients are read once while its own is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.depth_attention import compiled, op
from multiway.runtime.kernels.depth_attention.compiled import BATCH
from multiway.runtime.kernels.depth_attention.plan import Debt, Inputs, Plan, State, wide_type
from multiway.runtime.kernels.mix.history import History, Slot


def attend(
    history: History, query: Tensor, gains: Sequence[Tensor], biases: Sequence[Tensor], plan: Plan
) -> tuple[Tensor, ...]:
    """The outputs of an intact history; query: [D], in at least float32."""
    available = compiled.available(history[0].dtype)
    stacked = None if available else history.stacked()
    scales, fresh = _scales(history, plan.eps)
    if not torch.is_grad_enabled():
        inputs = Inputs(
            history=history, query=query, gains=gains, biases=biases, scales=scales, fresh=fresh
        )
        outputs = tuple(op.forward(inputs, plan, keep=False, stacked=stacked)[0])
        _remember(history, plan.eps, scales)
        return outputs
    slots = [source.slot for source in history.sources]
    reads = [source.node for source in history.sources]
    counts = len(history), len(gains), len(biases)
    run: Callable[..., tuple[Tensor, ...]] = Routed.apply
    others = [*scales, *([stacked] if stacked is not None else [])]
    outputs = run(plan, slots, counts, fresh, others, query, *reads, *gains, *biases)
    _remember(history, plan.eps, scales)
    return outputs


def _scales(history: History, eps: float) -> tuple[list[Tensor], list[bool]]:
    """1 / root mean square of each source, [tokens], and which of them are still to be computed."""
    known = [source.scales.get(eps) for source in history.sources]
    x = history[0]
    rows, wide = x.shape[:-1].numel(), wide_type(x)
    scales = [x.new_empty(rows, dtype=wide) if each is None else each for each in known]
    return scales, [each is None for each in known]


def _remember(history: History, eps: float, scales: Sequence[Tensor]) -> None:
    """Keeps scales with their sources, for the routers to come."""
    if torch.is_inference_mode_enabled():
        return  # tensors made in it cannot be saved for a backward
    for source, scale in zip(history.sources, scales, strict=True):
        source.scales[eps] = scale


class Routed(torch.autograd.Function):
    """depth_attention of sources. Keeps the average and the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        slots: Sequence[Slot | None],
        counts: tuple[int, int, int],
        fresh: Sequence[bool],
        others: Sequence[Tensor],
        query: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, stacked = _inputs(query, tensors, others, counts, fresh)
        outputs, state = op.forward(inputs, plan, keep=True, stacked=stacked)
        assert state is not None
        ctx.plan, ctx.slots, ctx.counts, ctx.others = plan, slots, counts, others
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(state.average, state.scores, state.lse, query, *tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "depth_attention has no second derivative: its backward cannot run with "
                "create_graph=True; compile the model without kernels for that"
            )
        average, scores, lse, *saved = ctx.saved_tensors  # once: so a checkpoint hands them out
        nothing = [None] * 5
        if all(grad is None for grad in grads):
            return *nothing, *[None] * len(saved)
        state, sources = State(average=average, scores=scores, lse=lse), ctx.counts[0]
        # Without their place in autograd's graph, which leads to the slots that debts wait in.
        query, *tensors = (x.detach() for x in saved)
        inputs, stacked = _inputs(query, tensors, ctx.others, ctx.counts, [False] * sources)
        found = op.backward(grads, inputs, ctx.plan, state, stacked)
        needs = ctx.needs_input_grad[6 : 6 + sources]
        free = []  # sources that are no entries with gradients of their own
        for i, (slot, need) in enumerate(zip(ctx.slots, needs, strict=True)):
            if slot is not None and need:
                slot.owe(_Share(found.debt, i))
            elif need:
                free.append(i)
        made = dict(zip(free, op.pull(free, [found.debt]), strict=True))
        back = [made.get(i) for i in range(sources)]
        return *nothing, found.query, *back, *found.gains, *found.biases


class _Share:
    """What one router owes one source, which has this place in all histories that hold it."""

    __slots__ = ("debt", "place")

    def __init__(self, debt: Debt, place: int) -> None:
        self.debt, self.place = debt, place

    def settle(self, shares: Sequence[_Share], slot: Slot, into: Tensor | None) -> Tensor:
        """The gradient of a source from all shares of it, added to `into` if that is given.

        Sources before it get what the same routers owe them in the same reading of the routers'
        gradients. Only routers between them owe them anything after that.
        """
        slots: list[Slot] = []
        before = slot.before if len(shares) >= BATCH else None
        while before is not None and len(slots) < BATCH - 1 and _alike(before.owed(), shares):
            slots.append(before)
            before = before.before
        sums = [into, *(each.get() for each in slots)]
        places = range(self.place, self.place - len(sums), -1)
        first, *others = op.pull(places, [share.debt for share in shares], sums)
        for each, grad in zip(slots, others, strict=True):
            each.pay(grad)
        return first


def _alike(one: Sequence[Any], other: Sequence[_Share]) -> bool:
    """Whether the same routers owe both."""
    return len(one) == len(other) and all(
        isinstance(a, _Share) and a.debt is b.debt for a, b in zip(one, other, strict=True)
    )


def _inputs(
    query: Tensor,
    tensors: Sequence[Tensor],
    others: Sequence[Tensor],
    counts: tuple[int, int, int],
    fresh: Sequence[bool],
) -> tuple[Inputs, Tensor | None]:
    """The inputs from history, gains and biases behind each other, and from scales and perhaps the
    buffer of the history."""
    sources, gains, _ = counts
    inputs = Inputs(
        history=tensors[:sources],
        query=query,
        gains=tensors[sources : sources + gains],
        biases=tensors[sources + gains :],
        scales=others[:sources],
        fresh=fresh,
    )
    return inputs, others[sources] if len(others) > sources else None
