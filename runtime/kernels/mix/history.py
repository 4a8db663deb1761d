"""The history in eager training: sources whose gradients are summed in one buffer each.

With L blocks there are L (L + 1) / 2 gradients of sources, one for each mix and source. Here a mix
adds its own straight into the buffers of its sources, in the sweep that computes them, where
autograd would write each one out and then read it back to add it.

How: `append` passes x through a node of its own, `Append`. Mixes read the node's output; `Mix`
sends None back along those edges and adds to the buffers instead. As the edges are there, autograd
runs `Append.backward` after all its readers: it hands the buffer on as the gradient of x. What
stands in the list is x itself, so that every other reader, hook or `torch.autograd.grad` of an
entry sees the whole gradient. Two threads must not run backward over one history at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels.mix import compiled, op
from multiway.runtime.kernels.mix.plan import Inputs, Plan, Wanted

# Private, so looked for: without it nothing is tracked, and gradients are added by autograd.
_backward_id = getattr(torch._C, "_current_graph_task_id", None)


class Share(Protocol):
    """What a reader owes a source, to be paid when all that is owed to it is known."""

    def settle(self, shares: Sequence[Any], slot: Slot, into: Tensor | None) -> Tensor:
        """The sum of the shares of a slot, added to `into` if that is given."""


class Slot:
    """The sum of what mixes sent back to a source in the backward that is running, and what other
    readers owe it. before: the slot of the source before, if that has one.
    """

    __slots__ = ("_grad", "_shares", "_task", "before")

    def __init__(self, before: Slot | None) -> None:
        self.before = before
        self._grad: Tensor | None = None
        self._shares: list[Share] = []
        self._task = -1

    def get(self) -> Tensor | None:
        """The sum so far. What another backward left behind is dropped: one that stopped half
        way, or that did not ask for x and so never came to its Append.
        """
        self._renew()
        return self._grad

    def set(self, grad: Tensor | None) -> None:
        self._renew()
        self._grad = grad

    def owe(self, share: Share) -> None:
        """Adds to what is owed. Shares of one slot are of one kind."""
        self._renew()
        self._shares.append(share)

    def owed(self) -> list[Share]:
        """What is owed now."""
        self._renew()
        return self._shares

    def pay(self, grad: Tensor) -> None:
        """Puts the sum of everything so far in the place of it and of all that is owed."""
        self._renew()
        self._grad, self._shares = grad, []

    def take(self) -> Tensor | None:
        """The sum of everything, which the slot then forgets."""
        self._renew()
        grad, shares = self._grad, self._shares
        self._grad, self._shares = None, []
        return shares[0].settle(shares, self, grad) if shares else grad

    def _renew(self) -> None:
        assert _backward_id is not None
        if self._task != _backward_id():
            self._grad, self._shares, self._task = None, [], _backward_id()


class Source:
    """An entry of a history. Mixes read `node` in place of x where x needs a gradient.

    Append holds the slot and not the source: a circle through autograd's graph would keep every
    hidden alive until the garbage collector comes by. scales: by the eps of a router's norm, what
    routers found out about x and need again.
    """

    __slots__ = ("node", "scales", "slot", "version", "x")

    def __init__(self, x: Tensor, before: Source | None) -> None:
        self.x = x
        # None for a tensor of inference mode, whose changes are not counted.
        self.version: int | None = None if x.is_inference() else x._version
        self.scales: dict[float, Tensor] = {}
        self.slot: Slot | None = None
        self.node = x
        if _backward_id is not None and torch.is_grad_enabled() and x.requires_grad:
            self.slot = Slot(before.slot if before is not None else None)
            run: Callable[..., Tensor] = Append.apply
            self.node = run(x, self.slot)


class Buffer:
    """A history in one piece of memory [capacity, ..., D], filled from the front when asked for.

    held: the sources that lie there.
    """

    __slots__ = ("capacity", "data", "held")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[Source] = []
        self.data: Tensor | None = None

    def of(self, sources: Sequence[Source]) -> Tensor | None:
        """The sources as [L, ..., D]; None where another branch has gone on here, or it is full."""
        same = all(held is source for held, source in zip(self.held, sources, strict=False))
        if not same or len(sources) > self.capacity:
            return None
        if self.data is None:
            like = sources[0].x
            size = (self.capacity, *like.shape)
            self.data = torch.empty(size, dtype=like.dtype, device=like.device)
        for source in sources[len(self.held) :]:
            # Through .data: autograd must not take this for a change of what earlier mixes saved.
            self.data.data[len(self.held)].copy_(source.x.detach())
            self.held.append(source)
        return self.data[: len(sources)]


class History(list[Tensor]):
    """A list of hiddens [..., D] that knows the source behind each.

    A hidden without its source gets a new one: whoever maps the tensors of a list, as FSDP does,
    makes `type(found)(tensors)`, and these have another history in autograd's graph.
    """

    __slots__ = ("buffer", "sources")

    def __init__(
        self, entries: Iterable[Source | Tensor] = (), buffer: Buffer | None = None
    ) -> None:
        self.sources: list[Source] = []
        for each in entries:
            if isinstance(each, Tensor):
                each = Source(each, self.sources[-1] if self.sources else None)
            self.sources.append(each)
        super().__init__([source.x for source in self.sources])
        self.buffer = buffer

    def intact(self) -> bool:
        """Whether nobody changed the list, or a hidden in it, since."""
        if len(self) != len(self.sources):
            return False
        for source, x in zip(self.sources, self, strict=True):
            if source.x is not x or (source.version is not None and x._version != source.version):
                return False
        return True

    def stacked(self) -> Tensor | None:
        """[L, ..., D], where there is to be a buffer. Entries are copied there the first time."""
        if self.buffer is None:
            return None
        found = self.buffer.of(self.sources)
        if found is None:
            self.buffer = Buffer(max(self.buffer.capacity, len(self)))
            found = self.buffer.of(self.sources)
        return found


class Append(torch.autograd.Function):
    """Identity of x; its gradient is what the mixes that read it summed in the slot, or owe it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Slot) -> Tensor:
        ctx.slot = slot
        ctx.set_materialize_grads(False)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        assert grad is None, "only mixes read this node, and they send nothing back"
        return ctx.slot.take(), None


class Mix(torch.autograd.Function):
    """fused_mix of sources. Saves its inputs only, and computes the streams once more."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        slots: Sequence[Slot | None],
        counts: tuple[int, int],
        stacked: Tensor | None,
        weights: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.plan, ctx.slots, ctx.counts, ctx.stacked = plan, slots, counts, stacked is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights, *tensors, *([stacked] if stacked is not None else []))
        return tuple(op.forward(_inputs(weights, tensors, *counts), plan, stacked))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused_mix has no second derivative: its backward cannot run with "
                "create_graph=True; compile the model without kernels for that"
            )
        weights, *tensors = ctx.saved_tensors
        stacked = tensors.pop() if ctx.stacked else None
        inputs = _inputs(weights, tensors, *ctx.counts)
        needs = ctx.needs_input_grad[4:]
        slots: Sequence[Slot | None] = ctx.slots
        into = [None if slot is None else slot.get() for slot in slots]
        wanted = Wanted(sources=needs[1 : 1 + len(slots)], weights=needs[0], into=into)
        found = op.backward(grads, inputs, ctx.plan, wanted, stacked)
        back: list[Tensor | None] = []
        for slot, grad in zip(slots, found.sources, strict=True):
            if slot is not None:
                slot.set(grad)
            back.append(grad if slot is None else None)
        return None, None, None, None, found.weights, *back, *found.gains, *found.biases


def _inputs(weights: Tensor, tensors: Sequence[Tensor], gains: int, biases: int) -> Inputs:
    """The inputs from history, gains and biases behind each other."""
    sources = len(tensors) - gains - biases
    return Inputs(
        history=tensors[:sources],
        weights=weights,
        gains=tensors[sources : sources + gains],
        biases=tensors[sources + gains :],
    )


def append(history: Sequence[Tensor] | None, x: Tensor, *, capacity: int = 0) -> History:
    """A new history with x [..., D] at its end; the one given can still be used.

    capacity: how many entries there will be. Where mixes are batched products, they take room for
    as many at once and copy entries there; 0 for no such copy.
    """
    known = history if isinstance(history, History) and history.intact() else None
    buffer = None if known is None else known.buffer
    before: Sequence[Source | Tensor] = known.sources if known else history or ()
    return History([*before, x], buffer or (Buffer(capacity) if capacity else None))


def mix(history: History, inputs: Inputs, plan: Plan) -> tuple[Tensor, ...]:
    """The outputs of a mix of an intact history; `inputs` has its entries too."""
    stacked = None if compiled.available(inputs.weights.dtype) else history.stacked()
    if not torch.is_grad_enabled():
        return tuple(op.forward(inputs, plan, stacked))
    slots = [source.slot for source in history.sources]
    reads = [source.node for source in history.sources]
    counts = len(inputs.gains), len(inputs.biases)
    vectors = (*inputs.gains, *inputs.biases)
    run: Callable[..., tuple[Tensor, ...]] = Mix.apply
    return run(plan, slots, counts, stacked, inputs.weights, *reads, *vectors)
