"""Norms in C (norms.c): float32, float64 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import (
    NORMS,
    SUFFIX_WITH_HALF,
    alike,
    check_memory,
    sum_apart,
    threads,
)

WIDEST, MOST = 8192, 2
_NONE = (None,) * MOST


def _of_ways(*names: str) -> list[tuple[str, Any]]:
    """Arrays of MOST addresses, as that many fields each."""
    return [(f"{name}{way}", ctypes.c_void_p) for name in names for way in range(MOST)]


class _Call(ctypes.Structure):
    """`struct call` of norms.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "x_stride", "norm")),
        *((name, ctypes.c_int64) for name in ("ways", "threads")),
        ("eps", ctypes.c_double),
        ("x", ctypes.c_void_p),
        *_of_ways("gains", "biases", "grads", "outs"),
        *((name, ctypes.c_void_p) for name in ("dx", "totals")),
        *_of_ways("dgains", "dbiases"),
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
    shape = x.shape
    outs = [x.new_empty(shape) for _ in range(plan.ways)]
    call = _call(plan, x, affine, _NONE, outs, None)
    _run("norms_forward", call, x)
    return tuple(outs)


def backward(
    plan: Plan, x: Tensor, affine: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of x and of every gain and bias, None for one that is None."""
    rows = [None if each is None else each.contiguous() for each in grads]
    assert all(each is None or each.shape == x.shape for each in rows)
    dx = x.new_empty(x.shape)
    call = _call(plan, x, affine, rows, _NONE, dx)
    wanted = [each is not None for each in affine]
    sums = sum_apart(call, x, [call.width] * len(wanted), wanted)
    call.dgains0, call.dgains1 = _pair(sums[: plan.ways])
    call.dbiases0, call.dbiases1 = _pair(sums[plan.ways :])
    _run("norms_backward", call, x)
    return [dx, *sums]


def _call(
    plan: Plan,
    x: Tensor,
    affine: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    outs: Sequence[Tensor | None],
    dx: Tensor | None,
) -> _Call:
    """The call, which keeps what it reads and writes."""
    width, ways = x.shape[-1], plan.ways
    x = x.contiguous()
    rows = x.numel() // width
    given = [None if each is None else each.contiguous() for each in affine]
    assert ways <= MOST and len(given) == 2 * ways
    for each in given:
        assert each is None or each.shape == (width,)
    call = _Call(  # in the order of the fields: names, and fields set later, take longer
        rows, width, width, NORMS.index(plan.norm), ways, threads(x.numel(), rows), plan.eps,
        x.data_ptr(), *_pair(given[:ways]), *_pair(given[ways:]), *_pair(grads), *_pair(outs),
        None if dx is None else dx.data_ptr(),
    )  # fmt: skip
    call.kept = x, given, grads, outs, dx
    return call


def _pair(tensors: Sequence[Tensor | None]) -> list[int | None]:
    """Addresses for each way there may be."""
    found = [None if each is None else each.data_ptr() for each in tensors]
    return found if len(found) == MOST else [*found, None]


def _run(name: str, call: _Call, x: Tensor) -> None:
    loaded = native.library("norms")
    assert loaded is not None
    if x.numel():
        function = getattr(loaded, f"{name}_{SUFFIX_WITH_HALF[x.dtype]}")
        check_memory(function(ctypes.byref(call)), name)
