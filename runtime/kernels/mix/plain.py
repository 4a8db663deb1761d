"""The mix in torch's operators: any float type, and wherever there is no C compiler.

Sources are multiplied as one [tokens, L, D] batch. That is a view where they already lie behind
each other in one buffer [L, ..., D], and a copy otherwise: still a quarter of the memory traffic
of a sum of products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels.mix.plan import Grads, Inputs, Maybes, Plan, Wanted

PRODUCT_ELEMENTS = 1 << 19  # of the gradients of all sources at a time: they stay in the cache


def forward(inputs: Inputs, plan: Plan, stacked: Tensor | None = None) -> list[Tensor]:
    """The outputs, each [..., D]. stacked: [L, ..., D], the history in one buffer, if it is."""
    with torch.autocast("cpu", enabled=False):
        streams = _streams(inputs, _batch(inputs, stacked))
        shape = inputs.history[0].shape
        outputs = []
        for i, way in enumerate(plan.normed):
            gain = inputs.gains[i] if inputs.gains else None
            bias = inputs.biases[i] if inputs.biases else None
            outputs.append(_norm(streams(way), gain, bias, plan).reshape(shape))
        # Copies: outputs of an operator must not share memory.
        keep = torch.contiguous_format
        outputs.extend(streams(way).clone(memory_format=keep).view(shape) for way in plan.raw)
        return outputs


def backward(
    grads: Maybes, inputs: Inputs, plan: Plan, wanted: Wanted, stacked: Tensor | None = None
) -> Grads:
    """Gradients from those of the outputs, at least one of which is a tensor."""
    with torch.autocast("cpu", enabled=False):
        batch = _batch(inputs, stacked)
        tokens, _, width = batch.shape
        wide = torch.promote_types(batch.dtype, torch.float32)
        rows = [None if g is None else g.reshape(tokens, width) for g in grads]
        ways = sorted({c for c, g in zip(plan.outputs, grads, strict=True) if g is not None})
        deltas: dict[int, torch.Tensor] = {}
        dgains, dbiases = [], []
        streams = _streams(inputs, batch)
        for i, way in enumerate(plan.outputs):
            row, normed = rows[i], i < len(plan.normed)
            if row is None:
                dgain = dbias = batch.new_zeros(width)
            elif normed:
                gain = inputs.gains[i] if inputs.gains else None
                dx, dgain, dbias = _norm_backward(row, streams(way), gain, plan)
                deltas[way] = deltas[way] + dx if way in deltas else dx
            else:
                deltas[way] = deltas[way] + row if way in deltas else row
            if normed:
                dgains.append(dgain.to(batch.dtype))
                dbiases.append(dbias.to(batch.dtype))
        narrow = torch.stack([deltas[way].to(wide) for way in ways], dim=1).to(batch.dtype)
        return Grads(
            sources=_source_grads(narrow, ways, inputs, wanted),
            weights=_weight_grads(narrow, ways, inputs, batch) if wanted.weights else None,
            gains=dgains if inputs.gains else [],
            biases=dbiases if inputs.biases else [],
        )


def _batch(inputs: Inputs, stacked: Tensor | None) -> Tensor:
    """The history as [tokens, L, D]."""
    width = inputs.history[0].shape[-1]
    if stacked is not None:
        return stacked.flatten(1, -2).transpose(0, 1)
    rows = [x.reshape(inputs.tokens, width) for x in inputs.history]
    return torch.stack(rows).transpose(0, 1) if inputs.shared else torch.stack(rows, dim=1)


def _streams(inputs: Inputs, batch: Tensor) -> Callable[[int], Tensor]:
    """way -> its stream [tokens, D]."""
    tokens, sources, width = batch.shape
    if inputs.shared:
        flat = inputs.weights @ batch.transpose(0, 1).reshape(sources, tokens * width)
        return flat.view(len(flat), tokens, width).__getitem__
    weights = inputs.weights.reshape(tokens, *inputs.weights.shape[-2:])
    return torch.bmm(weights, batch).transpose(0, 1).__getitem__


def _norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, plan: Plan) -> Tensor:
    """The norm of x [tokens, D], times gain, plus bias."""
    if plan.norm == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], gain, bias, plan.eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.square().mean(-1, keepdim=True) + plan.eps).rsqrt()
    y = wide * scale if gain is None else wide * scale * gain
    return (y if bias is None else y + bias).to(x.dtype)


def _norm_backward(
    dy: Tensor, x: Tensor, gain: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [tokens, D], of the gain and of the bias [D], in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dy, x = dy.to(wide), x.to(wide)
    if plan.norm == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    scale = (x.square().mean(-1, keepdim=True) + plan.eps).rsqrt()
    unit = x * scale
    g = dy if gain is None else dy * gain
    dx = torch.addcmul(g, unit, (g * unit).mean(-1, keepdim=True), value=-1)
    if plan.norm == "layer_norm":
        dx -= g.mean(-1, keepdim=True)
    return dx.mul_(scale), (dy * unit).sum(0), dy.sum(0)


def _weight_grads(deltas: Tensor, ways: list[int], inputs: Inputs, batch: Tensor) -> Tensor:
    """<delta of way c, source l>, of each token or summed over them."""
    made = torch.zeros_like(inputs.weights)
    if inputs.shared:
        tokens, sources, width = batch.shape
        rows = deltas.transpose(0, 1).reshape(len(ways), tokens * width)
        made[ways] = rows @ batch.transpose(0, 1).reshape(sources, tokens * width).t()
    else:
        made[..., ways, :] = torch.bmm(deltas, batch.transpose(1, 2)).view(
            *made.shape[:-2], len(ways), made.shape[-1]
        )
    return made


def _source_grads(
    deltas: Tensor, ways: list[int], inputs: Inputs, wanted: Wanted
) -> list[Tensor | None]:
    """The sum of weights times deltas for each source, added to the buffers that there are."""
    tokens, width = inputs.tokens, inputs.history[0].shape[-1]
    weights = inputs.weights[..., ways, :].transpose(-2, -1)  # [..., L, ways]
    weights = weights.expand(tokens, -1, -1) if inputs.shared else weights.flatten(0, -3)
    found: list[Tensor | None] = [None] * len(inputs.history)
    for l, (x, want) in enumerate(zip(inputs.history, wanted.sources, strict=True)):  # noqa: E741
        into = wanted.into[l]
        found[l] = None if not want else x.new_empty(x.shape) if into is None else into
    step = max(1, PRODUCT_ELEMENTS // (len(found) * width))
    product = deltas.new_empty((min(step, tokens), len(found), width))
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        made = product[: part.stop - start]
        torch.bmm(weights[part], deltas[part], out=made)
        for l, grad in enumerate(found):  # noqa: E741
            if grad is not None:
                rows = grad.view(tokens, width)[part]
                rows.copy_(made[:, l]) if wanted.into[l] is None else rows.add_(made[:, l])
    return found
