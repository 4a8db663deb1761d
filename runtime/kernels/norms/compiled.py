"""Norms in C (norms.c): float32, float64 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import SUFFIX_WITH_HALF, alike, threads

NORMS = ("layer_norm", "rms_norm")  # numbered as in norms.c
WIDEST, MOST = 8192, 2

_Pair = ctypes.c_void_p * MOST


class _Call(ctypes.Structure):
    """`struct call` of norms.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "x_stride", "norm")),
        *((name, ctypes.c_int64) for name in ("ways", "threads")),
        ("eps", ctypes.c_double),
        ("x", ctypes.c_void_p),
        *((name, _Pair) for name in ("gains", "biases", "grads", "outs")),
        ("dx", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of a call. ways: number of gains, of biases and of results."""

    ways: int
    norm: str
    eps: float


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether these tensors are computed here."""
    if x.dtype not in SUFFIX_WITH_HALF or not alike(x, *others) or not 0 < x.shape[-1] <= WIDEST:
        return False
    return native.library("norms") is not None


def forward(plan: Plan, x: Tensor, affine: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """x [*, D], the gains, then the biases, [D] or None each -> [*, D] for each way."""
    call, kept = _call(plan, x, affine)
    outs = [x.new_empty(x.shape) for _ in range(plan.ways)]
    call.outs = _pair(outs)
    _run("norms_forward", call, x)
    del kept
    return tuple(outs)


def backward(
    plan: Plan, x: Tensor, affine: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor]:
    """Gradients of x and of every gain and bias, whether or not there is one."""
    call, kept = _call(plan, x, affine)
    rows = [None if each is None else each.contiguous() for each in grads]
    dx = x.new_empty(x.shape)
    totals = torch.zeros(call.threads, plan.ways, 2, call.width, dtype=torch.float64)
    call.grads, call.dx, call.totals = _pair(rows), dx.data_ptr(), totals.data_ptr()
    _run("norms_backward", call, x)
    del kept
    sums = totals.sum(0).to(x.dtype)
    return [dx, *sums[:, 0], *sums[:, 1]]


def _call(
    plan: Plan, x: Tensor, affine: Sequence[Tensor | None]
) -> tuple[_Call, list[Tensor | None]]:
    """The call, and what must live as long as it does."""
    width = x.shape[-1]
    x = x.contiguous()
    rows = x.numel() // width
    given = [None if each is None else each.contiguous() for each in affine]
    assert plan.ways <= MOST and len(given) == 2 * plan.ways
    assert all(each is None or each.shape == (width,) for each in given)
    call = _Call(
        rows=rows,
        width=width,
        x_stride=width,
        norm=NORMS.index(plan.norm),
        ways=plan.ways,
        threads=threads(x.numel(), rows),
        eps=plan.eps,
        x=x.data_ptr(),
        gains=_pair(given[: plan.ways]),
        biases=_pair(given[plan.ways :]),
    )
    return call, [x, *given]


def _pair(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return _Pair(*(None if each is None else each.data_ptr() for each in tensors))


def _run(name: str, call: _Call, x: Tensor) -> None:
    loaded = native.library("norms")
    assert loaded is not None
    if x.numel():
        getattr(loaded, f"{name}_{SUFFIX_WITH_HALF[x.dtype]}")(ctypes.byref(call))
