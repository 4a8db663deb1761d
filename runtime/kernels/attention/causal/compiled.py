"""Attention in C (attend.c): float32 and float64 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import SUFFIX

_BLOCK = 64  # queries and keys of a block, QUERIES and KEYS of attend.c
_PAD = 16  # lanes of the longest vector

_SIZES = ("batch", "heads", "key_heads", "length", "keys", "width", "causal")
_WORK = ("parts", "threads", "mask_batch", "scratch_each")
_TENSORS = ("query", "key", "value", "out", "grad", "query_grad", "key_grad", "value_grad")


class _Heads(ctypes.Structure):
    """`struct heads` of attend.c."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "head", "token")),
    ]


class _Call(ctypes.Structure):
    """`struct call` of attend.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, *_WORK)),
        ("scale", ctypes.c_double),
        *((name, _Heads) for name in _TENSORS),
        *((name, ctypes.c_void_p) for name in ("mask", "lse", "scratch")),
    ]


def forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """The result [B, H, T, E], laid out as [B, T, H, E], and log-sum-exp of the scores [B, H, T].

    query: [B, H, T, E]; key, value: [B, K, S, E]; mask: [B or 1, 1, 1, S] bool, true for keys that
    may be seen. Any strides. Of a query that sees nothing the result is 0 and log-sum-exp infinite.
    """
    query, key, value = (_rows(each) for each in (query, key, value))
    out = heads_like(query)
    lse = query.new_empty(query.shape[:3])
    call, kept = _call(query, key, mask, causal)
    units, most = call.batch * call.key_heads, -(-call.length // _BLOCK)
    call.parts = 1 if not units else min(most, -(-2 * torch.get_num_threads() // units))
    call.threads = max(1, min(torch.get_num_threads(), units * call.parts))
    call.lse = lse.data_ptr()
    _run("attend_forward", call, query, query=query, key=key, value=value, out=out)
    del kept
    return out, lse


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    wanted: Sequence[bool] = (True, True, True),
) -> list[Tensor]:
    """Gradients of query, key and value from that of the result; only those that are wanted."""
    query, key, value, grad, out = (_rows(each) for each in (query, key, value, grad, out))
    call, kept = _call(query, key, mask, causal)
    call.threads = max(1, min(torch.get_num_threads(), call.batch * call.key_heads))
    names = [f"{name}_grad" for name in ("query", "key", "value")]
    made = {
        name: heads_like(each)
        for name, each, want in zip(names, (query, key, value), wanted, strict=True)
        if want
    }
    lse = lse.contiguous()
    call.lse = lse.data_ptr()
    given = {"query": query, "key": key, "value": value, "out": out, "grad": grad, **made}
    _run("attend_backward", call, query, **given)
    del kept
    return list(made.values())


def _call(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool
) -> tuple[_Call, Tensor | None]:
    """The call, and what must live as long as it does."""
    batch, heads, length, width = query.shape
    seen = None if mask is None else mask.contiguous()
    call = _Call(
        batch=batch,
        heads=heads,
        key_heads=key.shape[1],
        length=length,
        keys=key.shape[2],
        width=width,
        causal=causal,
        scale=width**-0.5,
        mask_batch=key.shape[2] if seen is not None and seen.shape[0] > 1 else 0,
        mask=None if seen is None else seen.data_ptr(),
    )
    return call, seen


def _run(name: str, call: _Call, like: Tensor, **tensors: Tensor) -> None:
    loaded = native.library("attend")
    assert loaded is not None
    for place, x in tensors.items():
        setattr(call, place, _Heads(x.data_ptr(), *x.stride()[:3]))
    wide = -(-call.width // _PAD) * _PAD
    rows = -(-call.keys // _BLOCK) * _BLOCK
    call.scratch_each = 4 * rows * wide + 2 * _BLOCK * _BLOCK + 5 * _BLOCK * wide
    if "grad" not in tensors:
        call.scratch_each -= 2 * rows * wide + 3 * _BLOCK * wide
    scratch = like.new_empty(call.threads * call.scratch_each)
    call.scratch = scratch.data_ptr()
    if like.numel():
        getattr(loaded, f"{name}_{SUFFIX[like.dtype]}")(ctypes.byref(call))


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def heads_like(x: Tensor) -> Tensor:
    """Memory for [B, H, T, E] in the order [B, T, H, E], as projections read and write it."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)
