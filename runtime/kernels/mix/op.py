"""The mix as operators of torch, for programs that are compiled or exported.

`multiway::fused_mix` is a function of a list of hiddens; its backward is an operator too. Both run
the C kernel where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.mix import compiled, plain
from multiway.runtime.kernels.mix.plan import Grads, Inputs, Maybes, Plan, Wanted, no_grads


def forward(inputs: Inputs, plan: Plan, stacked: Tensor | None = None) -> list[Tensor]:
    """The outputs, each [..., D], by the fastest way there is. stacked: see plain.forward."""
    if not plan.outputs:
        return []
    if compiled.available(inputs.weights.dtype):
        return compiled.forward(inputs, plan)
    return plain.forward(inputs, plan, stacked)


def backward(
    grads: Maybes, inputs: Inputs, plan: Plan, wanted: Wanted, stacked: Tensor | None = None
) -> Grads:
    """Gradients of what is wanted, and of gains and biases, from those of the outputs."""
    if all(grad is None for grad in grads):
        return no_grads(inputs, wanted)
    if compiled.available(inputs.weights.dtype):
        return compiled.backward(grads, inputs, plan, wanted)
    return plain.backward(grads, inputs, plan, wanted, stacked)


# The signatures of operators are read from annotations that must be types, which those of this
# file are not: the schemas say the same.
_PLAN = "str norm, float eps, int[] normed, int[] raw"
_INPUTS = "Tensor[] history, Tensor weights, Tensor[] gains, Tensor[] biases"


def _fused_mix(
    history: list[Tensor],
    weights: Tensor,
    gains: list[Tensor],
    biases: list[Tensor],
    norm: str,
    eps: float,
    normed: Sequence[int],
    raw: Sequence[int],
) -> list[Tensor]:
    inputs = Inputs(history=history, weights=weights, gains=gains, biases=biases)
    plan = Plan(norm=norm, eps=eps, normed=tuple(normed), raw=tuple(raw))
    return forward(inputs, plan)


def _fused_mix_backward(
    grads: list[Tensor | None],
    history: list[Tensor],
    weights: Tensor,
    gains: list[Tensor],
    biases: list[Tensor],
    norm: str,
    eps: float,
    normed: Sequence[int],
    raw: Sequence[int],
    sources: Sequence[bool],
    want_weights: bool,
) -> list[Tensor]:
    """Gradients of the sources that are wanted, of the weights if wanted, of gains and biases."""
    inputs = Inputs(history=history, weights=weights, gains=gains, biases=biases)
    plan = Plan(norm=norm, eps=eps, normed=tuple(normed), raw=tuple(raw))
    into = [None] * len(history)
    wanted = Wanted(sources=sources, weights=want_weights, into=into)
    found = backward(grads, inputs, plan, wanted)
    made = [x for x in (*found.sources, found.weights) if x is not None]
    # Those of gains and biases are slices of one sum, but outputs must not share memory.
    return [*made, *(x.clone() for x in (*found.gains, *found.biases))]


fused_mix_op = torch.library.custom_op(
    "multiway::fused_mix", _fused_mix, mutates_args=(), schema=f"({_INPUTS}, {_PLAN}) -> Tensor[]"
)
fused_mix_backward_op = torch.library.custom_op(
    "multiway::fused_mix_backward",
    _fused_mix_backward,
    mutates_args=(),
    schema=f"(Tensor?[] grads, {_INPUTS}, {_PLAN}, bool[] sources, bool want_weights) -> Tensor[]",
)


@fused_mix_op.register_fake
def _(history: Any, weights: Any, gains: Any, biases: Any, *plan: Any) -> list[Tensor]:
    _, _, normed, raw = plan
    return [history[0].new_empty(history[0].shape) for _ in (*normed, *raw)]


@fused_mix_backward_op.register_fake
def _(grads: Any, history: Any, weights: Any, gains: Any, biases: Any, *plan: Any) -> list[Tensor]:
    *_, sources, want_weights = plan
    wanted = [x for x, want in zip(history, sources, strict=True) if want]
    likes = [*wanted, *([weights] if want_weights else []), *gains, *biases]
    return [x.new_empty(x.shape) for x in likes]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    history, weights, gains, biases, *ctx.plan = inputs
    ctx.save_for_backward(*history, weights, *gains, *biases)
    ctx.sizes = len(history), len(gains), len(biases)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: Any) -> Any:
    sources, gains, biases = ctx.sizes
    saved = list(ctx.saved_tensors)
    need_history, need_weights, need_gains, need_biases, *_ = ctx.needs_input_grad
    tensors = saved[:sources], saved[sources], saved[-gains - biases :][:gains]
    made = iter(
        fused_mix_backward_op(
            list(grads),
            *tensors,
            saved[len(saved) - biases :],
            *ctx.plan,
            list(need_history),
            need_weights,
        )
    )
    history = [next(made) if need else None for need in need_history]
    weights = next(made) if need_weights else None
    vectors = [
        [x if need else None for need, x in zip(needs, made, strict=False)]
        for needs in (need_gains, need_biases)
    ]
    # torch takes an empty list of ints for one of tensors, and wants a list back for it.
    rest: list[Any] = [[] if value == [] else None for value in ctx.plan]
    return history, weights, *vectors, *rest


fused_mix_op.register_autograd(_backward, setup_context=_setup)
