"""The generator in C (token_weights.c): gelu on the CPU, in float32, forward of bfloat16, too."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import threads


class _Call(ctypes.Structure):
    """`struct call` of token_weights.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "features", "outputs")),
        *((name, ctypes.c_int64) for name in ("threads", "half")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "hidden", "output", "shift")),
        *((name, ctypes.c_void_p) for name in ("raw", "scales", "out")),
        *((name, ctypes.c_void_p) for name in ("grad", "draw", "dx")),
    ]


def forward(
    rows: Tensor, hidden: Tensor, output: Tensor, shift: Tensor | None, eps: float, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """gelu(rms_norm(rows) hidden') output' + shift [N, O], and what backward needs, if `keep`.

    rows: [N, D]; hidden: [F, D]; output: [O, F]; shift: [O]; all of one type. Kept in float32 are
    raw = rows hidden' [N, F] and scale = 1 / sqrt(mean(rows^2) + eps) [N, 1].
    """
    count, features, outputs = len(rows), len(hidden), len(output)
    out = rows.new_empty(count, outputs)
    raw = rows.new_empty(count, features, dtype=torch.float32) if keep else None
    scales = rows.new_empty(count, 1, dtype=torch.float32) if keep else None
    given = [rows, hidden.contiguous(), output.contiguous()]
    given += [] if shift is None else [shift.contiguous()]
    half = rows.dtype is torch.bfloat16
    for each in given:
        assert each.is_contiguous() and each.dtype is (rows.dtype if half else torch.float32)
    assert hidden.shape[1] == rows.shape[1] and output.shape[1] == features
    assert shift is None or shift.numel() == outputs
    call = _Call(
        tokens=count,
        width=rows.shape[1],
        features=features,
        outputs=outputs,
        threads=threads(count * (rows.shape[1] + outputs) * features, count),
        half=half,
        eps=eps,
        x=rows.data_ptr(),
        hidden=given[1].data_ptr(),
        output=given[2].data_ptr(),
        shift=None if shift is None else given[3].data_ptr(),
        raw=None if raw is None else raw.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        out=out.data_ptr(),
    )
    loaded = native.library("token_weights")
    assert loaded is not None
    failed = loaded.token_weights_forward(ctypes.byref(call))
    if failed:
        raise MemoryError(f"token_weights: {failed} threads got no memory to work in")
    return out, raw, scales


def backward(
    raw: Tensor, rows: Tensor, scales: Tensor, grad: Tensor, *, of_rows: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """gelu(raw * scale) once more, and from its gradient those of raw and, through the scale alone
    and if wanted, of the rows.

    raw, rows, scales: what `forward` had and kept; grad: [N, F].
    """
    grad, out, draw = grad.contiguous(), torch.empty_like(raw), torch.empty_like(raw)
    dx = torch.empty_like(rows) if of_rows else None
    for each in (raw, rows, scales, grad):
        assert each.is_contiguous() and each.dtype == torch.float32 and len(each) == len(raw)
    call = _Call(
        tokens=len(raw),
        width=rows.shape[1],
        features=raw.shape[1],
        threads=threads(raw.numel() + rows.numel(), len(raw)),
        x=rows.data_ptr(),
        raw=raw.data_ptr(),
        scales=scales.data_ptr(),
        out=out.data_ptr(),
        grad=grad.data_ptr(),
        draw=draw.data_ptr(),
        dx=None if dx is None else dx.data_ptr(),
    )
    loaded = native.library("token_weights")
    assert loaded is not None
    loaded.token_weights_backward(ctypes.byref(call))
    return out, draw, dx
