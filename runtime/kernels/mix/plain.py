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

from multiway.runtime.kernels.mix.plan import Grads, Inputs, Maybes, Plan, Wanted

PRODUCT_ELEMENTS = 1 << 20  # of the gradients of all sources at a time: they stay in the cache


def forward(inputs: Inputs, plan: Plan, stacked: Tensor | None = None) -> list[Tensor]:
    """The outputs, each [..., D]. stacked: [L, ..., D], the history in one buffer, if it is."""
    with torch.autocast("cpu", enabled=False):
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
    with torch.autocast("cpu", enabled=False):
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
    if inputs.shared:
        flat = inputs.weights @ batch.transpose(0, 1).reshape(sources, tokens * width)
        return flat.view(len(flat), tokens, width)
    weights = inputs.weights.reshape(tokens, *inputs.weights.shape[-2:])
    return torch.bmm(weights, batch).transpose(0, 1)


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
    streams = batch.new_empty((tokens, len(ways), width), dtype=wide)
    found = _Deltas(streams=streams, gains=[], biases=[])
    one, written = streams.new_ones(()), set[int]()

    def add(way: int, row: Tensor, scale: Tensor) -> None:
        into = streams[:, ways.index(way)]
        into.addcmul_(row, scale) if way in written else torch.mul(row, scale, out=into)
        written.add(way)

    count = len(plan.normed)
    if any(row is not None for row in rows[:count]):
        units, scales = _units(_streams(inputs, batch).to(wide), plan)
    for i, (way, row) in enumerate(zip(plan.outputs, rows, strict=True)):
        if i >= count:
            if row is not None:
                add(way, row, one)
            continue
        if row is None:
            found.gains.append(streams.new_zeros(width))
            found.biases.append(streams.new_zeros(width))
            continue
        gain = inputs.gains[i] if inputs.gains else None
        product = row * units[way]
        found.gains.append(product.sum(0))
        found.biases.append(row.sum(0))
        add(way, _before_scale(row, product, units[way], gain, plan), scales[way])
    return found


def _units(streams: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Streams [C, tokens, D], written over by their norms, and what scaled them [C, tokens, 1]."""
    if plan.norm == "layer_norm":
        streams.sub_(streams.mean(-1, keepdim=True))
    scale = torch.linalg.vector_norm(streams, dim=-1, keepdim=True)
    scale = scale.square_().div_(streams.shape[-1]).add_(plan.eps).rsqrt_()
    return streams.mul_(scale), scale


def _before_scale(
    row: Tensor, product: Tensor, unit: Tensor, gain: Tensor | None, plan: Plan
) -> Tensor:
    """The gradient of a stream but for its scale. product: row * unit, which is written over."""
    g = row if gain is None else row * gain
    along = (product if gain is None else product.mul_(gain)).mean(-1, keepdim=True)
    middle = g.mean(-1, keepdim=True) if plan.norm == "layer_norm" else None
    dx = torch.addcmul(g, unit, along, value=-1, out=None if gain is None else g)
    return dx if middle is None else dx.sub_(middle)


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
    fresh = [i for i, x in enumerate(found) if x is not None and wanted.into[i] is None]
    summed = [i for i, x in enumerate(found) if x is not None and wanted.into[i] is not None]
    step = max(1, PRODUCT_ELEMENTS // (len(found) * width))
    rows = [() if x is None else torch.split(x.view(tokens, width), step) for x in found]
    product = deltas.new_empty((min(step, tokens), len(found), width))
    for part, (w, d) in enumerate(
        zip(torch.split(weights, step), torch.split(deltas, step), strict=True)
    ):
        made = torch.bmm(w, d, out=product[: len(w)]).unbind(1)
        for chosen, write in ((fresh, torch._foreach_copy_), (summed, torch._foreach_add_)):
            if chosen:
                write([rows[i][part] for i in chosen], [made[i] for i in chosen])
    return found
