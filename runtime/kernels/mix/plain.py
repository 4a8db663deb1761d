"""The mix in torch's operators: any float type, and wherever there is no C compiler.

Sources are multiplied as one [tokens, L, D] batch. That is a view where they already lie behind
each other in one buffer [L, ..., D], and a copy otherwise: still a quarter of the memory traffic
of a sum of products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels.kernel import no_autocast
from multiway.runtime.kernels.mix.plan import Grads, Inputs, Maybes, Plan, Wanted
from multiway.runtime.kernels.rows.norms_plain import norm_backward

CACHED_ELEMENTS = 1 << 21  # of products that are then added to gradients: they stay in the cache


def forward(inputs: Inputs, plan: Plan, stacked: Tensor | None = None) -> list[Tensor]:
    """The outputs, each [..., D]. stacked: [L, ..., D], the history in one buffer, if it is."""
    with no_autocast():
        streams = _streams(inputs, _batch(inputs, stacked))
        shape = inputs.history[0].shape
        outputs = []
        for i, way in enumerate(plan.normed):
            gain = inputs.gains[i] if inputs.gains else None
            bias = inputs.biases[i] if inputs.biases else None
            outputs.append(_norm(streams[way], gain, bias, plan).reshape(shape))
        # Copies: outputs of an operator must not share memory.
        keep = torch.contiguous_format
        outputs.extend(streams[way].clone(memory_format=keep).view(shape) for way in plan.raw)
        return outputs


def backward(
    grads: Maybes, inputs: Inputs, plan: Plan, wanted: Wanted, stacked: Tensor | None = None
) -> Grads:
    """Gradients from those of the outputs, at least one of which is a tensor."""
    with no_autocast():
        batch = _batch(inputs, stacked)
        ways = sorted({c for c, g in zip(plan.outputs, grads, strict=True) if g is not None})
        found = _deltas(grads, ways, inputs, plan, batch)
        deltas = found.streams.to(batch.dtype)
        return Grads(
            sources=_source_grads(deltas, ways, inputs, wanted),
            weights=_weight_grads(deltas, ways, inputs, batch) if wanted.weights else None,
            gains=[each.to(batch.dtype) for each in found.gains] if inputs.gains else [],
            biases=[each.to(batch.dtype) for each in found.biases] if inputs.biases else [],
        )


def _batch(inputs: Inputs, stacked: Tensor | None) -> Tensor:
    """The history as [tokens, L, D]."""
    width = inputs.history[0].shape[-1]
    if stacked is not None:
        return stacked.flatten(1, -2).transpose(0, 1)
    rows = [x.reshape(inputs.tokens, width) for x in inputs.history]
    return torch.stack(rows).transpose(0, 1) if inputs.shared else torch.stack(rows, dim=1)


def _streams(inputs: Inputs, batch: Tensor) -> Tensor:
    """All streams, [C, tokens, D], in memory of their own."""
    tokens, sources, width = batch.shape
    ways = inputs.weights.shape[-2]
    if inputs.shared:
        flat = inputs.weights @ batch.transpose(0, 1).reshape(sources, tokens * width)
        return flat.view(ways, tokens, width)
    return torch.bmm(inputs.weights.reshape(tokens, ways, sources), batch).transpose(0, 1)


def _norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, plan: Plan) -> Tensor:
    """The norm of x [tokens, D], times gain, plus bias."""
    if plan.norm == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], gain, bias, plan.eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.square().mean(-1, keepdim=True) + plan.eps).rsqrt()
    y = wide * scale if gain is None else wide * scale * gain
    return (y if bias is None else y + bias).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class _Deltas:
    """Gradients of streams [tokens, ways, D], of gains and of biases [D], in at least float32."""

    streams: Tensor
    gains: list[Tensor]
    biases: list[Tensor]


def _deltas(grads: Maybes, ways: list[int], inputs: Inputs, plan: Plan, batch: Tensor) -> _Deltas:
    """Gradients of the streams `ways` from those of the outputs."""
    tokens, _, width = batch.shape
    wide = torch.promote_types(batch.dtype, torch.float32)
    rows = [None if g is None else g.reshape(tokens, width).to(wide) for g in grads]
    # One way behind the other: each is written as a whole, and products take them as they lie.
    into = batch.new_empty((len(ways), tokens, width), dtype=wide)
    normed, written = len(plan.normed), set[int]()
    gains, biases = into.new_zeros((2, normed, width))
    if any(row is not None for row in rows[:normed]):
        streams = _streams(inputs, batch)
    for i, (way, row) in enumerate(zip(plan.outputs, rows, strict=True)):
        if row is None:
            continue
        whole = into[ways.index(way)]
        part = torch.empty_like(whole) if way in written else whole
        if i < normed:
            gain = inputs.gains[i] if inputs.gains else None
            x = streams[way].to(wide).contiguous()
            found = norm_backward(row, x, gain, norm=plan.norm, eps=plan.eps, out=part)
            gains[i], biases[i] = found
        else:
            part.copy_(row)
        if part is not whole:
            whole.add_(part)
        written.add(way)
    return _Deltas(streams=into.transpose(0, 1), gains=[*gains], biases=[*biases])


def _weight_grads(deltas: Tensor, ways: list[int], inputs: Inputs, batch: Tensor) -> Tensor:
    """<delta of way c, source l>, of each token or summed over them."""
    if inputs.shared:
        tokens, sources, width = batch.shape
        rows = deltas.transpose(0, 1).reshape(len(ways), tokens * width)
        found = rows @ batch.transpose(0, 1).reshape(sources, tokens * width).t()
    else:
        found = torch.bmm(deltas, batch.transpose(1, 2))
        found = found.view(*inputs.weights.shape[:-2], *found.shape[1:])
    if len(ways) == inputs.weights.shape[-2]:
        return found
    made = torch.zeros_like(inputs.weights)
    made[..., ways, :] = found
    return made


def _source_grads(
    deltas: Tensor, ways: list[int], inputs: Inputs, wanted: Wanted
) -> list[Tensor | None]:
    """The sum of weights times deltas for each source, added to the buffers that there are."""
    tokens, _, width = deltas.shape
    whole = len(ways) == inputs.weights.shape[-2]
    weights = inputs.weights if whole else inputs.weights[..., ways, :]
    by = weights.transpose(-2, -1)  # [..., L, ways]
    by = by.expand(tokens, -1, -1) if inputs.shared else by.flatten(0, -3)
    found = [
        (x.new_empty(x.shape) if into is None else into) if want else None
        for x, want, into in zip(inputs.history, wanted.sources, wanted.into, strict=True)
    ]
    rows = [None if x is None else x.view(tokens, width) for x in found]
    step = max(1, CACHED_ELEMENTS // max(1, len(rows) * width))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        products = torch.bmm(by[part], deltas[part]).unbind(1)
        for row, product, into in zip(rows, products, wanted.into, strict=True):
            if row is not None:
                row[part].copy_(product) if into is None else row[part].add_(product)
    return found
