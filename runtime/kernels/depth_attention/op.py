"""Attention over depth as operators of torch, for lists of hiddens and programs that are compiled.

`multiway::depth_attention` is a function of a list of hiddens; its backward is an operator too,
which computes scores and averages once more. Both run the C kernel where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.depth_attention import compiled, plain
from multiway.runtime.kernels.depth_attention.compiled import BATCH
from multiway.runtime.kernels.depth_attention.plan import (
    Debt,
    Grads,
    Inputs,
    Maybes,
    Plan,
    State,
    Tensors,
)


def forward(
    inputs: Inputs, plan: Plan, *, keep: bool, stacked: Tensor | None = None
) -> tuple[list[Tensor], State | None]:
    """The outputs, each [..., D], by the fastest way there is; with `keep` what backward reads."""
    if compiled.available(inputs.history[0].dtype):
        return compiled.forward(inputs, plan, keep=keep)
    return plain.forward(inputs, plan, stacked)


def backward(
    grads: Maybes, inputs: Inputs, plan: Plan, state: State, stacked: Tensor | None = None
) -> Grads:
    """Gradients of query, gains and biases, and what is owed to the sources."""
    if compiled.available(inputs.history[0].dtype):
        return compiled.backward(grads, inputs, plan, state)
    return plain.backward(grads, inputs, plan, state, stacked)


def pull(sources: Sequence[int], debts: Sequence[Debt], into: Maybes | None = None) -> list[Tensor]:
    """The gradients of sources, by their places, from all that is owed to them: each [..., D] is
    added to that of `into` if there is one."""
    way = compiled if compiled.available(debts[0].history[0].dtype) else plain
    sums: list[Tensor | None] = [None] * len(sources) if into is None else list(into)
    for groups in dict.fromkeys(debt.groups for debt in debts):
        chosen = [debt for debt in debts if debt.groups == groups]
        for start in range(0, len(sources), BATCH):
            part = slice(start, start + BATCH)
            sums[part] = way.pull(sources[part], chosen, sums[part])
    return [each for each in sums if each is not None]


def unscaled(history: Tensors, query: Tensor, gains: Tensors, biases: Tensors) -> Inputs:
    """Inputs with a list of hiddens whose root mean squares are not known."""
    tokens = history[0].shape[:-1].numel()
    scales = [query.new_empty(tokens) for _ in history]
    fresh = [True] * len(history)
    return Inputs(
        history=history, query=query, gains=gains, biases=biases, scales=scales, fresh=fresh
    )


# The signatures of operators are read from annotations that must be types, which those of this
# file are not: the schemas say the same.
_PLAN = "int groups, float eps, str norm, float norm_eps, int normed, bool raw"
_INPUTS = "Tensor[] history, Tensor query, Tensor[] gains, Tensor[] biases"


def _plan(groups: int, eps: float, norm: str, norm_eps: float, normed: int, raw: bool) -> Plan:
    return Plan(groups=groups, eps=eps, norm=norm, norm_eps=norm_eps, normed=normed, raw=raw)


def _depth_attention(
    history: list[Tensor], query: Tensor, gains: list[Tensor], biases: list[Tensor], *plan: Any
) -> list[Tensor]:
    return forward(unscaled(history, query, gains, biases), _plan(*plan), keep=False)[0]


def _depth_attention_backward(
    grads: list[Tensor | None],
    history: list[Tensor],
    query: Tensor,
    gains: list[Tensor],
    biases: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    """Gradients of the query, of the sources that are wanted, of gains and biases."""
    *settings, wanted = rest
    plan, inputs = _plan(*settings), unscaled(history, query, gains, biases)
    if all(grad is None for grad in grads):
        wants = [x for x, want in zip(history, wanted, strict=True) if want]
        return [torch.zeros_like(x) for x in (query, *wants, *gains, *biases)]
    _, state = forward(inputs, plan, keep=True)
    assert state is not None
    found = backward(grads, inputs, plan, state)
    sources = pull([i for i, want in enumerate(wanted) if want], [found.debt])
    # Those of query, gains and biases are slices of one sum, but outputs must not share memory.
    query, *vectors = (x.clone() for x in (found.query, *found.gains, *found.biases))
    return [query, *sources, *vectors]


depth_attention_op = torch.library.custom_op(
    "multiway::depth_attention",
    _depth_attention,
    mutates_args=(),
    schema=f"({_INPUTS}, {_PLAN}) -> Tensor[]",
)
depth_attention_backward_op = torch.library.custom_op(
    "multiway::depth_attention_backward",
    _depth_attention_backward,
    mutates_args=(),
    schema=f"(Tensor?[] grads, {_INPUTS}, {_PLAN}, bool[] wanted) -> Tensor[]",
)


@depth_attention_op.register_fake
def _(history: Any, query: Any, gains: Any, biases: Any, *plan: Any) -> list[Tensor]:
    *_, normed, raw = plan
    return [history[0].new_empty(history[0].shape) for _ in range(normed + raw)]


@depth_attention_backward_op.register_fake
def _(grads: Any, history: Any, query: Any, gains: Any, biases: Any, *rest: Any) -> list[Tensor]:
    wanted = [x for x, want in zip(history, rest[-1], strict=True) if want]
    return [x.new_empty(x.shape) for x in (query, *wanted, *gains, *biases)]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    history, query, gains, biases, *ctx.plan = inputs
    ctx.save_for_backward(query, *history, *gains, *biases)
    ctx.sizes = len(history), len(gains)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: Any) -> Any:
    sources, gains = ctx.sizes
    query, *saved = ctx.saved_tensors
    need_history, need_query, need_gains, need_biases, *_ = ctx.needs_input_grad
    tensors = saved[:sources], query, saved[sources:][:gains], saved[sources + gains :]
    dquery, *made = depth_attention_backward_op(
        list(grads), *tensors, *ctx.plan, list(need_history)
    )
    rest = iter(made)
    history = [next(rest) if need else None for need in need_history]
    vectors = [
        [x if need else None for need, x in zip(needs, rest, strict=False)]
        for needs in (need_gains, need_biases)
    ]
    return history, dquery if need_query else None, *vectors, *[None] * len(ctx.plan)


depth_attention_op.register_autograd(_backward, setup_context=_setup)
