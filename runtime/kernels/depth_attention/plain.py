"""Attention over depth in torch's operators: any float type, and where there is no C compiler.

Sources are read as one batch [L, tokens, D], a copy unless they lie behind each other in one buffer
already. Scores are one product of it with a matrix that has the query's groups in columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels.depth_attention.plan import (
    Debt,
    Grads,
    Inputs,
    Maybes,
    Plan,
    State,
    wide_type,
)
from multiway.runtime.kernels.kernel import no_autocast
from multiway.runtime.kernels.rows.norms_plain import norm_backward


def forward(
    inputs: Inputs, plan: Plan, stacked: Tensor | None = None
) -> tuple[list[Tensor], State]:
    """The outputs, each [..., D], and what backward reads. stacked: [L, ..., D], the history in
    one buffer, if it is.
    """
    with no_autocast():
        first = inputs.history[0]
        batch = _batch(inputs, stacked)
        for source, scale, fresh in zip(batch, inputs.scales, inputs.fresh, strict=True):
            if fresh:
                length = torch.linalg.vector_norm(source, dim=-1)
                torch.rsqrt(length.square() / inputs.width + plan.eps, out=scale)
        scores = batch @ _columns(inputs.query, plan.groups) * _scales(inputs)
        lse = scores.logsumexp(0)
        average = _sum((scores - lse).exp(), batch).view(first.shape)
        narrow = average.to(first.dtype)
        outputs = []
        for i in range(plan.normed):
            gain = inputs.gains[i] if inputs.gains else None
            bias = inputs.biases[i] if inputs.biases else None
            outputs.append(_norm(narrow, gain, bias, plan))
        outputs += [narrow] if plan.raw else []
        return outputs, State(average=average, scores=scores, lse=lse)


def backward(
    grads: Maybes, inputs: Inputs, plan: Plan, state: State, stacked: Tensor | None = None
) -> Grads:
    """From the gradients of the outputs, at least one of which is a tensor."""
    with no_autocast():
        batch, groups, each = _batch(inputs, stacked), plan.groups, inputs.width // plan.groups
        grad, dgains, dbiases = _average_grads(grads, inputs, plan, state)
        weights = (state.scores - state.lse).exp()
        products = _products(grad, batch, groups)
        slopes = weights * (products - (weights * products).sum(0))
        scales = _scales(inputs)
        own = (slopes * state.scores).sum(-1, keepdim=True) * scales.square() / inputs.width
        slopes *= scales
        whole = slopes.flatten(0, 1).t() @ batch.flatten(0, 1)  # [G, D]: each group has its own E
        query = whole.view(groups, groups, each).diagonal().t().flatten()
        debt = Debt(
            history=inputs.history,
            query=inputs.query,
            grad=grad,
            parts=torch.cat([weights, slopes, own], -1),
            groups=groups,
        )
        return Grads(query=query, gains=dgains, biases=dbiases, debt=debt)


def pull(sources: Sequence[int], debts: Sequence[Debt], into: Maybes) -> list[Tensor]:
    """The gradients of sources from all that is owed to them, for one number of groups. They are
    added to `into`, [..., D] each, where given."""
    return [_pull(source, debts, each) for source, each in zip(sources, into, strict=True)]


def _pull(source: int, debts: Sequence[Debt], into: Tensor | None) -> Tensor:
    x, groups = debts[0].history[source], debts[0].groups
    tokens, width = debts[0].grad.shape
    with no_autocast():
        rows = x.reshape(tokens, width).to(debts[0].grad.dtype)
        own = torch.stack([debt.parts[source, :, -1:] for debt in debts]).sum(0)
        total = own.neg() * rows
        by_group = total.view(tokens, groups, width // groups)
        for debt in debts:
            parts = debt.parts[source, :, :-1].unsqueeze(-1)
            by_group.addcmul_(parts[:, :groups], debt.grad.view_as(by_group))
            by_group.addcmul_(parts[:, groups:], debt.query.view(1, *by_group.shape[1:]))
        made = total.to(x.dtype).view(x.shape)
        return made if into is None else into.add_(made)


def _batch(inputs: Inputs, stacked: Tensor | None) -> Tensor:
    """The history as [L, tokens, D], in at least float32."""
    whole = torch.stack(list(inputs.history)) if stacked is None else stacked
    return whole.reshape(len(whole), inputs.tokens, inputs.width).to(wide_type(whole))


def _scales(inputs: Inputs) -> Tensor:
    """[L, tokens, 1]."""
    return torch.stack(list(inputs.scales)).unsqueeze(-1)


def _columns(query: Tensor, groups: int) -> Tensor:
    """[D, G], whose column g is the query in the channels of group g and 0 elsewhere."""
    each = len(query) // groups
    columns = query.new_zeros(groups, groups, each)
    columns.diagonal().copy_(query.view(groups, each).t())
    return columns.view(groups, len(query)).t()


def _sum(weights: Tensor, batch: Tensor) -> Tensor:
    """[tokens, D]: the sources [L, tokens, D] summed with weights [L, tokens, G]."""
    sources, tokens, groups = weights.shape
    width = batch.shape[-1]
    rows = batch.view(sources, tokens * groups, width // groups).transpose(0, 1)
    by = weights.view(sources, tokens * groups, 1).permute(1, 2, 0)
    return torch.bmm(by, rows).view(tokens, width)


def _products(grad: Tensor, batch: Tensor, groups: int) -> Tensor:
    """[L, tokens, G]: <grad, source> in each group."""
    sources, tokens, width = batch.shape
    rows = batch.view(sources, tokens * groups, width // groups).transpose(0, 1)
    made = torch.bmm(rows, grad.view(tokens * groups, width // groups, 1))
    return made.view(tokens, groups, sources).permute(2, 0, 1)


def _average_grads(
    grads: Maybes, inputs: Inputs, plan: Plan, state: State
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of the average [tokens, D], and of gains and biases, from those of the outputs."""
    tokens, width = inputs.tokens, inputs.width
    average = state.average.view(tokens, width)
    grad = torch.zeros_like(average)
    dgains, dbiases = [], []
    for i, each in enumerate(grads):
        dy = grad.new_zeros(tokens, width) if each is None else each.reshape(tokens, width)
        if i == plan.normed:
            grad = grad + dy
            continue
        gain = inputs.gains[i] if inputs.gains else None
        wide, dx = dy.to(grad.dtype), torch.empty_like(grad)
        found = norm_backward(wide, average, gain, norm=plan.norm, eps=plan.norm_eps, out=dx)
        grad = grad + dx
        dgains.append(found[0].to(dy.dtype))
        dbiases.append(found[1].to(dy.dtype))
    return grad, dgains if inputs.gains else [], dbiases if inputs.biases else []


def _norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, plan: Plan) -> Tensor:
    """The norm of x [..., D], times gain, plus bias."""
    if plan.norm == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], gain, bias, plan.norm_eps)
    wide = x.to(wide_type(x))
    y = (wide * (wide.square().mean(-1, keepdim=True) + plan.norm_eps).rsqrt()).to(x.dtype)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias
