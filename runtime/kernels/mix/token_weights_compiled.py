"""The generator in C (token_weights.c): gelu on the CPU, in float32, forward of bfloat16, too."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import addresses, sum_apart, threads


class _Call(ctypes.Structure):
    """`struct call` of token_weights.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "features", "outputs")),
        *((name, ctypes.c_int64) for name in ("threads", "half")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "hidden", "output", "shift")),
        *((name, ctypes.c_void_p) for name in ("raw", "scales", "out")),
        *((name, ctypes.c_void_p) for name in ("grad", "draw", "dx", "dout", "totals", "dshift")),
    ]


def forward(
    x: Tensor,
    hidden: Tensor,
    output: Tensor,
    shift: Tensor | None,
    eps: float,
    shape: Sequence[int],
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """gelu(rms_norm(x) hidden') output' + shift as a tensor of this shape, of [N, O] numbers, and
    what backward needs, if `keep`.

    x: [..., D], N rows; hidden: [F, D]; output: [O, F]; shift: O numbers; all of one type. Kept in
    float32 are raw = x hidden' [N, F] and scale = 1 / sqrt(mean(x^2) + eps) [N, 1].
    """
    features, width = hidden.shape
    outputs, dtype = output.shape[0], x.dtype
    count = x.numel() // width
    assert output.shape[1] == features and x.shape[-1] == width and x.is_contiguous()
    assert math.prod(shape) == count * outputs and (shift is None or shift.numel() == outputs)
    out = x.new_empty(shape)
    raw = x.new_empty(count, features, dtype=torch.float32) if keep else None
    scales = x.new_empty(count, 1, dtype=torch.float32) if keep else None
    hidden, output = hidden.contiguous(), output.contiguous()
    shift = None if shift is None else shift.contiguous()
    half = dtype is torch.bfloat16
    for each in (x, hidden, output, shift):
        assert each is None or each.dtype is (dtype if half else torch.float32)
    call = _Call(
        count, width, features, outputs, threads(count * (width + outputs) * features, count),
        half, eps, x.data_ptr(), hidden.data_ptr(), output.data_ptr(),
        None if shift is None else shift.data_ptr(),
        None if raw is None else raw.data_ptr(),
        None if scales is None else scales.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    loaded = native.library("token_weights")
    assert loaded is not None
    failed = loaded.token_weights_forward(ctypes.byref(call))
    if failed:
        raise MemoryError(f"token_weights: {failed} threads got no memory to work in")
    return out, raw, scales


def backward(
    raw: Tensor,
    rows: Tensor,
    scales: Tensor,
    grad: Tensor,
    of_weights: Tensor | None = None,
    *,
    of_rows: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """gelu(raw * scale) once more, and from its gradient those of raw and, through the scale alone
    and if wanted, of the rows. Last the sum of `of_weights` [N, O] over rows, if given.

    raw, rows, scales: what `forward` had and kept; grad: [N, F].
    """
    grad, out, draw = grad.contiguous(), torch.empty_like(raw), torch.empty_like(raw)
    dx = torch.empty_like(rows) if of_rows else None
    of_weights = None if of_weights is None else of_weights.contiguous()
    for each in (raw, rows, scales, grad, of_weights):
        assert each is None or (each.is_contiguous() and each.dtype is torch.float32)
        assert each is None or len(each) == len(raw)
    (count, features), width = raw.shape, rows.shape[1]
    outputs = 0 if of_weights is None else of_weights.shape[1]
    call = _Call(tokens=count, width=width, features=features, outputs=outputs)
    call.threads = threads(raw.numel() + rows.numel(), count)
    call.x, call.raw, call.scales = rows.data_ptr(), raw.data_ptr(), scales.data_ptr()
    call.out, call.grad, call.draw = out.data_ptr(), grad.data_ptr(), draw.data_ptr()
    call.dx, call.dout = addresses((dx, of_weights))
    (dshift,) = sum_apart(call, raw, [outputs], [of_weights is not None])
    (call.dshift,) = addresses((dshift,))
    loaded = native.library("token_weights")
    assert loaded is not None
    loaded.token_weights_backward(ctypes.byref(call))
    return out, draw, dx, dshift
