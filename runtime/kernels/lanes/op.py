"""Which way a site of lanes goes: C where there is C, else torch's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels.kernel import traced
from multiway.runtime.kernels.lanes import compiled, plain
from multiway.runtime.kernels.lanes.plan import Inputs, Plan, regrouped


def run(inputs: Inputs, plan: Plan) -> tuple[Tensor, ...]:
    """What `fused_lanes` gives, by the fastest way there is."""
    if traced():
        return plain.forward(inputs, plan)
    if not compiled.takes(inputs, plan):
        return plain.forward(inputs, plan)
    tensors = inputs.tensors
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        results: tuple[Tensor, ...] = _Lanes.apply(plan, inputs.counts, *tensors)  # type: ignore[no-untyped-call]
        return results
    return tuple(compiled.forward(inputs, plan, save=False)[0])


class _Lanes(torch.autograd.Function):
    """The C kernel. Backward makes the lanes once more from the old ones; of the products, which
    are a few numbers for each token, it reads what forward kept.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, counts: Sequence[int], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs, saved = compiled.forward(Inputs(**regrouped(tensors, counts)), plan, save=True)
        ctx.plan, ctx.counts = plan, counts
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, saved)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        *tensors, saved = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(tensors))
        inputs = Inputs(**regrouped(tensors, ctx.counts))
        found = compiled.backward(grads, inputs, ctx.plan, saved)
        needs = ctx.needs_input_grad[2:]
        wanted = [grad if need else None for grad, need in zip(found, needs, strict=True)]
        return None, None, *wanted
