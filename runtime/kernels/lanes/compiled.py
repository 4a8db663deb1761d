"""A site of lanes in C (lanes.c): float32 and float64 on the CPU."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.lanes.plan import WEIGHTS, Inputs, Plan, columns
from multiway.runtime.kernels.native.calls import NORMS, SUFFIX, addressable, sum_apart, threads

BLOCK, MOST_LANES, MOST_NORMS = 16, 8, 4
ENDS = ("", "lanes", "pieces")
SUMS = ("matrix", "shift", "scale", "static", "gains", "offsets", "mix", "write", "read")

_Norms = ctypes.c_void_p * MOST_NORMS
_Pair = ctypes.c_double * 2


def _words(*names: str) -> list[Any]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[Any]:
    return [(name, ctypes.c_void_p) for name in names]


class _Call(ctypes.Structure):
    """`struct call` of lanes.c."""

    _fields_ = [
        *_words("tokens", "lanes", "width", "reads", "columns", "threads", "ends", "weights"),
        *_words("goes_on", "norm", "norms", "exps", "iterations", "transpose"),
        *_words("x_token", "x_lane", "y_token", "mix_token", "write_token", "read_token"),
        *((name, ctypes.c_double) for name in ("eps", "norm_eps", "balance_eps")),
        *((name, _Pair) for name in ("factors", "floors")),
        *_pointers("x", "y", "mix", "write", "read", "matrix", "shift", "scales", "statics"),
        *((name, _Norms) for name in ("gains", "offsets")),
        *_pointers("state", "mixing", "writing"),
        ("normed", _Norms),
        *_pointers("raw", "saved", "dstate", "dmixing", "dwriting"),
        ("dnormed", _Norms),
        *_pointers("draw", "dx", "dy", "dmix", "dwrite", "dread", "totals", "sums"),
        ("at", ctypes.c_int64 * (len(SUMS) + 1)),
    ]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What the parameters of a generator are for the kernel.

    matrix: [F, D] or [F, N*D], with the norm's gain inside; plain: without it; shift, scales: [F];
    statics: [N, F] or [F].
    """

    matrix: Tensor
    plain: Tensor
    shift: Tensor
    scales: Tensor
    statics: Tensor


def takes(inputs: Inputs, plan: Plan) -> bool:
    """Whether this call is computed here."""
    lanes = inputs.lanes
    if not addressable(lanes, *inputs.tensors) or not 0 < lanes.shape[-2] <= MOST_LANES:
        return False
    balance = plan.balance.get("iterations", 1) > 0
    if plan.normed > MOST_NORMS or lanes.shape[-1] == 0 or not balance:
        return False
    return plan.reads <= MOST_LANES and native.library("lanes") is not None


def packed(inputs: Inputs, plan: Plan) -> Packed:
    """One matrix and its vectors from the parameters of read, mix and write."""
    split = columns(plan, inputs.lanes.shape[-2])
    plain = torch.cat(list(inputs.matrices))
    shift = torch.cat(list(inputs.shifts)) if inputs.shifts else plain.new_zeros(plain.shape[0])
    shift = shift if inputs.bias is None else torch.addmv(shift, plain, inputs.bias)
    pairs = zip(inputs.scales, split, strict=True)
    return Packed(
        matrix=(plain if inputs.gain is None else plain * inputs.gain).contiguous(),
        plain=plain,
        shift=shift.contiguous(),
        scales=torch.cat([scale.expand(count) for scale, count in pairs]),
        statics=torch.cat(list(inputs.statics or inputs.biases), -1).contiguous(),
    )


def forward(inputs: Inputs, plan: Plan, *, save: bool) -> tuple[list[Tensor], Tensor | None]:
    """The outputs of `fused_lanes`, and what backward needs of the products, if `save`."""
    lanes = inputs.lanes
    call, kept = _call(inputs, plan)
    *lead, n, width = lanes.shape
    state = lanes.new_empty(lanes.shape) if plan.kept else None
    weights = [lanes.new_empty(*lead, n, c) for c in (n, 1)] if plan.goes_on else []
    reads = [lanes.new_empty(*lead, plan.reads * width) for _ in range(plan.normed + plan.raw)]
    saved = _room(inputs, plan) if save and plan.generates else None
    call.state, call.saved = _at(state), _at(saved)
    call.mixing, call.writing = (_at(x) for x in (weights or (None, None)))
    call.normed = _norms(reads[: plan.normed])
    call.raw = _at(reads[-1]) if plan.raw else None
    _run("lanes_forward", call, lanes)
    del kept
    return [*([] if state is None else [state]), *weights, *reads], saved


def backward(
    grads: Sequence[Tensor | None], inputs: Inputs, plan: Plan, saved: Tensor | None
) -> list[Tensor | None]:
    """Gradients in the order of Inputs.tensors, of all that is there, wanted or not."""
    lanes = inputs.lanes
    call, kept = _call(inputs, plan)
    given = [None if grad is None else grad.contiguous() for grad in grads]
    found = iter(given)
    call.dstate = _at(next(found) if plan.kept else None)
    call.dmixing, call.dwriting = (
        (_at(next(found)), _at(next(found))) if plan.goes_on else (None, None)
    )
    call.dnormed = _norms([next(found) for _ in range(plan.normed)])
    call.draw, call.saved = _at(next(found) if plan.raw else None), _at(saved)
    dlanes = lanes.new_empty(lanes.shape)
    made = {name: _of_tokens(getattr(inputs, name)) for name in ("mix", "write", "read")}
    dy = None if inputs.y is None else inputs.y.new_empty(inputs.y.shape)
    call.dx, call.dy = _at(dlanes), _at(dy)
    call.dmix, call.dwrite, call.dread = (_at(each) for each in made.values())
    (sums,) = sum_apart(call, lanes, [call.at[len(SUMS)]])
    call.sums = sums.data_ptr()
    _run("lanes_backward", call, lanes)
    del kept, given
    parts = dict(zip(SUMS, torch.split(sums, _sizes(inputs, plan)), strict=True))
    for name, value in made.items():
        shared = getattr(inputs, name)
        if shared is not None and value is None:
            made[name] = parts[name].view(shared.shape).clone()
    return [dlanes, dy, *made.values(), *_of_parameters(inputs, plan, parts)]


def _of_tokens(weights: Tensor | None) -> Tensor | None:
    """Where the gradient of weights goes, if every token has its own."""
    return None if weights is None or weights.ndim == 2 else weights.new_empty(weights.shape)


def _of_parameters(inputs: Inputs, plan: Plan, parts: dict[str, Tensor]) -> list[Tensor | None]:
    """Gradients from `gain` on, in the order of Inputs.tensors."""
    found: list[Tensor | None] = [None, None]
    if plan.generates:
        split = columns(plan, inputs.lanes.shape[-2])
        shift, plain = parts["shift"], torch.cat(list(inputs.matrices))
        matrix = parts["matrix"].view(plain.shape)
        if inputs.gain is not None:
            found[0] = (plain * matrix).sum(0)
            matrix = matrix * inputs.gain
        if inputs.bias is not None:
            found[1] = plain.t() @ shift
            matrix = torch.addr(matrix, shift, inputs.bias)
        found += [each.clone() for each in torch.split(matrix, split)]
        found += [each.clone() for each in torch.split(shift, split)] if inputs.shifts else []
        found += [each.sum(0, keepdim=True) for each in torch.split(parts["scale"], split)]
        statics = parts["static"]
        statics = statics.view(-1, sum(split)) if inputs.statics else statics
        found += [each.clone() for each in torch.split(statics, split, -1)]
    for name, given in (("gains", inputs.gains), ("offsets", inputs.offsets)):
        rows = parts[name].view(plan.normed, -1) if plan.normed else ()
        found += [row.clone() for row in rows] if given else []
    return found


def _call(inputs: Inputs, plan: Plan) -> tuple[_Call, list[Any]]:
    """The call without its outputs, and what must live as long as it does."""
    x, x_token, x_lane = _strides(inputs.lanes)
    y, mix, write, read = (
        None if each is None else each.contiguous()
        for each in (inputs.y, inputs.mix, inputs.write, inputs.read)
    )
    n, width = inputs.lanes.shape[-2:]
    generator = packed(inputs, plan) if plan.generates else None
    vectors = [[v.contiguous() for v in each] for each in (inputs.gains, inputs.offsets)]
    sizes = _sizes(inputs, plan)
    count = 0 if generator is None else generator.matrix.shape[0]
    blocks = -(-inputs.tokens // BLOCK)
    call = _Call(
        tokens=inputs.tokens,
        lanes=n,
        width=width,
        reads=plan.reads,
        columns=count,
        threads=threads(inputs.lanes.numel(), blocks),
        ends=ENDS.index(plan.ends),
        weights=WEIGHTS.index(plan.weights),
        goes_on=plan.goes_on,
        norm=NORMS.index(plan.norm),
        norms=plan.normed,
        exps=int(plan.balance.get("start") == "exp"),
        iterations=plan.balance.get("iterations", 0),
        transpose=int(plan.balance.get("transpose", False)),
        x_token=x_token,
        x_lane=x_lane,
        y_token=0 if y is None else y.shape[-1],
        mix_token=_per_token(mix),
        write_token=_per_token(write),
        read_token=_per_token(read),
        eps=plan.eps,
        norm_eps=plan.norm_eps,
        balance_eps=plan.balance.get("eps", 0.0),
        factors=_Pair(*plan.factors),
        floors=_Pair(*plan.floors),
        **{name: _at(t) for name, t in (("x", x), ("y", y), ("mix", mix), ("write", write))},
        read=_at(read),
        gains=_norms(vectors[0]),
        offsets=_norms(vectors[1]),
    )
    if generator is not None:
        call.matrix, call.shift = _at(generator.matrix), _at(generator.shift)
        call.scales, call.statics = _at(generator.scales), _at(generator.statics)
    call.at = (ctypes.c_int64 * (len(SUMS) + 1))(0, *itertools.accumulate(sizes))
    return call, [x, y, mix, write, read, generator, vectors]


def _sizes(inputs: Inputs, plan: Plan) -> list[int]:
    """How many numbers each part of the sums has, in the order of SUMS."""
    n, width = inputs.lanes.shape[-2:]
    f = sum(columns(plan, n)) if plan.generates else 0
    row, statics = (width, n * f) if plan.weights == "tanh" else (n * width, f)
    norms = plan.normed * plan.reads * width
    return [f * row, f, f, statics, norms, norms, n * n, n, n * plan.reads]


def _room(inputs: Inputs, plan: Plan) -> Tensor:
    """What is kept of the products for backward: [blocks, slots, BLOCK]."""
    n = inputs.lanes.shape[-2]
    f = sum(columns(plan, n))
    slots = n * f + 2 * n if plan.weights == "tanh" else f + 2
    return inputs.lanes.new_empty(-(-inputs.tokens // BLOCK), slots, BLOCK)


def _strides(lanes: Tensor) -> tuple[Tensor, int, int]:
    """Lanes [B, T, N, D] with one step from token to token, copied only if needed; that step,
    and the one from lane to lane, 0 where all are one."""
    batch, length, n, width = lanes.shape
    token = lanes.stride(1) if length > 1 else lanes.stride(0)
    even = batch == 1 or length == 1 or lanes.stride(0) == length * lanes.stride(1)
    lane = lanes.stride(2) if n > 1 else width
    if lanes.stride(-1) == 1 and even and lane in (0, width):
        return lanes, token, lane
    return lanes.contiguous(), n * width, width


def _per_token(weights: Tensor | None) -> int:
    """The step from token to token; 0 for weights that all tokens share."""
    return 0 if weights is None or weights.ndim == 2 else weights.shape[-2:].numel()


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _norms(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return _Norms(*(_at(each) for each in tensors))


def _run(name: str, call: _Call, x: Tensor) -> None:
    loaded = native.library("lanes")
    assert loaded is not None
    if call.tokens and getattr(loaded, f"{name}_{SUFFIX[x.dtype]}")(ctypes.byref(call)):
        raise MemoryError("no memory for the scratch of a site of lanes")
