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

from multiway.runtime.kernels.mix.history import History, Slot
from multiway.runtime.kernels.routed import compiled, op
from multiway.runtime.kernels.routed.plan import Debt, Inputs, Plan, State, wide_type


def routed(
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
    """routed_mix of sources. Keeps the average and the scores."""

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
        ctx.plan, ctx.slots, ctx.counts = plan, slots, counts
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, *tensors, *others, state.average, state.scores, state.lse)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "routed_mix has no second derivative: its backward cannot run with "
                "create_graph=True; compile the model without kernels for that"
            )
        saved = list(ctx.saved_tensors)  # once: a checkpoint hands them out once
        nothing = [None] * 5
        if all(grad is None for grad in grads):
            return *nothing, *[None] * (1 + sum(ctx.counts))
        query, *rest = saved[:-3]
        state = State(average=saved[-3], scores=saved[-2], lse=saved[-1])
        tensors, others = rest[: sum(ctx.counts)], rest[sum(ctx.counts) :]
        sources = ctx.counts[0]
        # Without their place in autograd's graph, which leads to the slots that debts wait in.
        tensors = [x.detach() for x in tensors]
        inputs, stacked = _inputs(query.detach(), tensors, others, ctx.counts, [False] * sources)
        found = op.backward(grads, inputs, ctx.plan, state, stacked)
        needs = ctx.needs_input_grad[6 : 6 + sources]
        back: list[Tensor | None] = []
        for i, (slot, need) in enumerate(zip(ctx.slots, needs, strict=True)):
            if slot is not None and need:
                slot.owe(_Share(found.debt, i))
            back.append(op.pull(i, [found.debt], None) if slot is None and need else None)
        return *nothing, found.query, *back, *found.gains, *found.biases


class _Share:
    """What one router owes one source."""

    def __init__(self, debt: Debt, source: int) -> None:
        self.debt, self.source = debt, source

    @staticmethod
    def settle(shares: Sequence[_Share], into: Tensor | None) -> Tensor:
        """The gradient of a source from all shares of it, added to `into` if that is given."""
        # A source has one place in all histories that go on from it.
        places = dict.fromkeys(share.source for share in shares)
        for place in places:
            debts = [share.debt for share in shares if share.source == place]
            into = op.pull(place, debts, into)
        assert into is not None
        return into


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
