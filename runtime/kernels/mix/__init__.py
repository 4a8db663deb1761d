"""Mixes over depth: a history of hiddens, weighted sums of it, and the norms that read them.

A plain list of hiddens goes through the operator `multiway::fused_mix` (op.py); a History, which
`append` makes in eager mode, through one that sums gradients in place (history.py). Either runs
the C kernel (compiled.py, mix.c) or torch's operators (plain.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.kernel import Kernel, Widths, traced
from multiway.runtime.kernels.mix import compiled, op, token_weights
from multiway.runtime.kernels.mix.history import History
from multiway.runtime.kernels.mix.history import append as _append
from multiway.runtime.kernels.mix.history import mix as _mix_history
from multiway.runtime.kernels.mix.plan import Inputs, plan_of
from multiway.runtime.kernels.native.calls import NORMS, OWN

__all__ = [
    "KERNELS",
    "MISSHAPEN",
    "History",
    "append",
    "fused_mix",
    "mix",
    "unlike",
]

MISSHAPEN = "shapes that do not fit"
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def fused_mix(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    norm: str,
    eps: float,
    normed: Sequence[int],
    raw: Sequence[int],
) -> tuple[Tensor, ...]:
    """Weighted sums of a history, normalised and as they are.

    history: L of [B, T, D]; weights: [B, T, C, L] or [C, L]; gains, biases: [D] for each of
    `normed`, or none. Stream c is sum_l weights[..., c, l] * history[l]. Returns, each [B, T, D],
    norm(stream c) * gain + bias for c in `normed`, then stream c for c in `raw`.
    """
    if not normed and not raw:
        return ()
    if not traced():
        learns = torch.is_grad_enabled()
        plan = plan_of(norm, eps, tuple(normed), tuple(raw))
        inputs = Inputs(history=list(history), weights=weights, gains=gains, biases=biases)
        # C reads the hiddens themselves, so that without gradients it does not matter who did what
        # to them.
        if not learns and compiled.available(weights.dtype):
            return tuple(compiled.forward(inputs, plan))
        if isinstance(history, History) and history.intact():
            return _mix_history(history, inputs, plan)
        if not learns:
            return tuple(op.forward(inputs, plan))
    tensors = list(history), weights, list(gains), list(biases)
    return tuple(op.fused_mix_op(*tensors, norm, eps, list(normed), list(raw)))


def mix(history: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """The C streams, each [B, T, D], of a history of L and weights [B, T, C, L] or [C, L]."""
    ways = range(weights.shape[-2])
    return fused_mix(history, weights, norm="", eps=0.0, normed=(), raw=ways)


def append(history: Sequence[Tensor] | None = None, x: Any = None, *, capacity: int = 0) -> Any:
    """The history with x [B, T, D] at its end, as a new list. capacity: entries to come, or 0."""
    if traced():
        return [*(history or []), x]
    return _append(history, x, capacity=capacity)


def _unknown(x: Tensor) -> str | None:
    """Why a tensor cannot be taken, whatever its shape."""
    if not x.is_cpu:
        return f"{x.device.type}: no kernel yet"
    if x.dtype not in FLOATS:
        return f"{str(x.dtype).removeprefix('torch.')}: no kernel for this type"
    if type(x) not in OWN and not torch.compiler.is_compiling():
        return f"{type(x).__name__}: no kernel for this kind of tensor"
    return None


def _takes_append(
    history: Sequence[Tensor] | None = None, x: Any = None, *, capacity: int = 0
) -> str | None:
    return _unknown(x)


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    norm = attrs.get("norm", "")
    if norm not in NORMS:
        return f"{norm}: no kernel for this norm"
    ways, known = (*attrs.get("normed", ()), *attrs.get("raw", ())), widths.get("C")
    if ways and known is not None and not 0 <= min(ways) <= max(ways) < known:
        return f"ways {min(ways)} to {max(ways)} of {known}"
    return None if widths.get("D", 1) else "rows without elements"


def _takes(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    *,
    normed: Sequence[int] = (),
    **_: Any,
) -> str | None:
    reason = unlike(history, (weights, *gains, *biases), shapes=True)
    if reason is not None:
        return reason
    first, size = history[0].shape, weights.shape
    if size[-1] != len(history) or (len(size) > 2 and size[:-2] != first[:-1]):
        return MISSHAPEN
    for vectors in (gains, biases):
        if vectors and len(vectors) != len(normed):
            return MISSHAPEN
        for x in vectors:
            if x.shape != first[-1:]:
                return MISSHAPEN
    return None


def _traces(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    **_: Any,
) -> str | None:
    return unlike(history, (weights, *gains, *biases))


def unlike(
    history: Sequence[Tensor], others: Sequence[Tensor], *, shapes: bool = False
) -> str | None:
    """Why no kernel takes a history with other tensors, which are to be of its type, or None.
    shapes: whether all in the history are to have one shape, too; else no size is looked at.
    """
    if not history:
        return "no sources"
    first = history[0]
    reason = _unknown(first) or _unknown(others[0])
    if reason is not None:
        return reason
    dtype, shape = first.dtype, first.shape if shapes else None
    for x in history:  # few calls: a mix of many hiddens pays for each
        if x.dtype is not dtype or not x.is_cpu:
            return _types(first, x)
        if shape is not None and x.shape != shape:
            return MISSHAPEN
    for x in others:
        if x.dtype is not dtype or not x.is_cpu:
            return _types(first, x)
    return None


def _types(first: Tensor, x: Tensor) -> str:
    return f"tensors of unlike types: {first.dtype} and {x.dtype}, {x.device}"


KERNELS = [
    *token_weights.KERNELS,
    Kernel(
        op="fused_mix",
        run=fused_mix,
        fits=_fits,
        takes=_takes,
        traces=_traces,
        doc="Each source is read once for all streams, which are normalised on the way out.",
    ),
    Kernel(
        op="append",
        run=append,
        takes=_takes_append,
        traces=_takes_append,
        doc="A list that lets mixes sum the gradients of a source in one buffer.",
    ),
    Kernel(
        op="mix",
        run=mix,
        fits=_fits,
        takes=_takes,
        traces=_traces,
        doc="fused_mix without norms: each source is read once for all streams.",
    ),
]
