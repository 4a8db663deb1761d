"""A site of lanes in torch's operators, which autograd and compilers can follow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels.lanes.plan import Inputs, Plan, columns, wide


def forward(inputs: Inputs, plan: Plan) -> tuple[Tensor, ...]:
    """What `fused_lanes` gives."""
    lanes = _ended(inputs, plan) if plan.ends else inputs.lanes
    made = [inputs.read]
    if plan.weights == "tanh":
        made = _tanh(lanes, inputs, plan)
    elif plan.weights == "gates":
        made = _gates(lanes, inputs, plan)
    found = [lanes] * plan.kept + [each for each in made[1:] if each is not None]
    if not plan.reads:
        return tuple(found)
    read = made[0]
    if read is None:
        x = lanes.sum(-2)
    else:
        x = (read.mT @ lanes).flatten(-2)
    for i in range(plan.normed):
        found.append(_norm(x, inputs, plan, i))
    return (*found, *[x] * plan.raw)


def _ended(inputs: Inputs, plan: Plan) -> Tensor:
    """The lanes behind a mix and a write."""
    lanes, mix, write, y = inputs.lanes, inputs.mix, inputs.write, inputs.y
    assert mix is not None and write is not None and y is not None
    pieces = y.reshape(lanes.shape) if plan.ends == "pieces" else y.unsqueeze(-2)
    return torch.addcmul(mix.mT @ lanes, write, pieces)


def _tanh(lanes: Tensor, inputs: Inputs, plan: Plan) -> list[Tensor | None]:
    z = F.layer_norm(lanes, lanes.shape[-1:], inputs.gain, inputs.bias, plan.eps)
    active = torch.split(_product(z, inputs).tanh(), columns(plan, lanes.shape[-2]), -1)
    parts = zip(active, inputs.scales, inputs.statics, strict=True)
    return [static + scale * each for each, scale, static in parts]


def _gates(lanes: Tensor, inputs: Inputs, plan: Plan) -> list[Tensor | None]:
    v = lanes.flatten(-2)
    v_wide = wide(v)
    v = (v_wide * (v_wide.square().mean(-1, keepdim=True) + plan.eps).rsqrt()).to(v.dtype)
    v = v if inputs.gain is None else v * inputs.gain
    v = v if inputs.bias is None else v + inputs.bias
    z = torch.split(_product(v, inputs), columns(plan, lanes.shape[-2]), -1)
    scaled = [
        wide(scale) * wide(each) + wide(bias)
        for each, scale, bias in zip(z, inputs.scales, inputs.biases, strict=True)
    ]
    found = [_gate(scaled[0], plan, 0)]
    if plan.goes_on:
        found += [balanced(scaled[1], **plan.balance), _gate(scaled[2], plan, 1)]
    return [each.to(lanes.dtype) for each in found]


def _product(x: Tensor, inputs: Inputs) -> Tensor:
    """All linears of x as one."""
    shifts = torch.cat(list(inputs.shifts)) if inputs.shifts else None
    return F.linear(x, torch.cat(list(inputs.matrices)), shifts)


def _gate(z: Tensor, plan: Plan, which: int) -> Tensor:
    return (plan.factors[which] * z.sigmoid() + plan.floors[which]).unsqueeze(-1)


def balanced(
    z: Tensor, *, count: int, start: str, iterations: int, eps: float, transpose: bool
) -> Tensor:
    """Sinkhorn of logits [*, N*N] -> [*, N, N]; see compiler/ops/sinkhorn.py."""
    logits = z.reshape(*z.shape[:-1], count, count)
    m: Tensor
    if start == "softmax":
        m = logits.softmax(-1) + eps
        m = m / (m.sum(-2, keepdim=True) + eps)
    else:
        m = (logits - logits.amax(-1, keepdim=True)).exp()
    for _ in range(iterations - 1 if start == "softmax" else iterations):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m.mT if transpose else m


def _norm(x: Tensor, inputs: Inputs, plan: Plan, which: int) -> Tensor:
    """The norm of what is read, with its gain and bias."""
    gain = inputs.gains[which] if inputs.gains else None
    offset = inputs.offsets[which] if inputs.offsets else None
    if plan.norm == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], gain, offset, plan.norm_eps)
    x_wide = wide(x)
    y = (x_wide * (x_wide.square().mean(-1, keepdim=True) + plan.norm_eps).rsqrt()).to(x.dtype)
    y = y if gain is None else y * gain
    return y if offset is None else y + offset
