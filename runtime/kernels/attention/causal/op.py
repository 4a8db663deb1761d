"""Causal attention as two operators: they pass torch's dispatcher, so that a mode sees them.

`runtime/measure/floor.py` counts them beside torch's own attention calls. Gradients are not theirs
but those of `_Attention`, which costs a call less than a derivative registered for an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import native
from multiway.runtime.kernels.attention.causal import compiled
from multiway.runtime.kernels.kernel import autocasts
from multiway.runtime.kernels.native.calls import addressable

WIDEST = 128  # channels of a head up to which it is measured
# Queries of all heads and rows. Two cores with AVX-512, float32, E 64, time over that of torch's
# call: without gradients 0.88 at 256 and 0.58 at 512; with gradients, where our autograd function
# in Python is paid for, 1.16 at 256, 0.78 at 512 and 0.70 at 1024. From there on E 32 to 128, B H
# 8 to 48, each direction alone: 0.4 to 0.75 from T 64 to 512, where torch leaves nothing out, 0.6
# to 0.75 at T 1024, 0.7 to 0.9 at T 2048; float64 0.3 to 0.65. Without causality: 0.9 to 1.06.
FEWEST, FEWEST_TRACKED = 1 << 8, 1 << 10


def takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether this causal call is computed here: where that is measured to be faster.

    As many keys as queries, a mask of keys alone, torch's own tensors of float32 or float64 on the
    CPU, neither compiling nor under autocast.
    """
    if torch.compiler.is_compiling() or not addressable(query, key, value):
        return False
    batch, heads, length, width = query.shape
    if key.shape != value.shape or key.shape[2:] != (length, width) or not 0 < width <= WIDEST:
        return False
    if key.shape[0] != batch or not key.shape[1] or heads % key.shape[1]:
        return False
    tracked = torch.is_grad_enabled() and _tracked(query, key, value)
    if batch * heads * length < (FEWEST_TRACKED if tracked else FEWEST):
        return False
    if not _hides_keys(mask, batch, length):
        return False
    if tracked and batch * key.shape[1] < torch.get_num_threads():
        return False  # the gradients of a key head are not divided
    if autocasts(query):
        return False
    return native.library("attend") is not None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(query key' / sqrt(E)) value where position t sees keys 0 .. t: [B, H, T, E].

    query: [B, H, T, E]; key, value: [B, K, T, E], query head h reads key head h // (H / K).
    mask: [B or 1, 1, 1, T] bool, true for keys that may be seen. Any strides. A query that sees
    nothing gives 0, and so do its gradients. A second backward pass raises RuntimeError.
    """
    if torch.is_grad_enabled() and _tracked(query, key, value):
        result: Tensor = _Attention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        return result
    return torch.ops.multiway.causal_attention(query, key, value, mask)[0]  # type: ignore[no-any-return]


def _tracked(*tensors: Tensor) -> bool:
    return any(each.requires_grad for each in tensors)


def _hides_keys(mask: Tensor | None, batch: int, keys: int) -> bool:
    """Whether there is no mask, or one of keys."""
    if mask is None:
        return True
    if type(mask) is not Tensor or not mask.is_cpu or mask.dtype != torch.bool:
        return False
    return tuple(mask.shape) in ((1, 1, 1, keys), (batch, 1, 1, keys))


class _Attention(torch.autograd.Function):
    """Keeps query, key, value, the result and log-sum-exp of the scores, as torch's own does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out, lse = torch.ops.multiway.causal_attention(query, key, value, mask)
        ctx.save_for_backward(query, key, value, mask, out, lse)
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, lse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        made = iter(
            torch.ops.multiway.causal_attention_backward(
                grad, query, key, value, mask, out, lse, wanted
            )
        )
        return *(next(made) if want else None for want in wanted), None


_library: Any = torch.library.Library("multiway", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "causal_attention(Tensor query, Tensor key, Tensor value, Tensor? mask) -> (Tensor, Tensor)"
)
_library.define(
    "causal_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? mask, "
    "Tensor out, Tensor lse, bool[] wanted) -> Tensor[]"
)


def _forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
    return compiled.forward(query, key, value, mask, causal=True)


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    tensors = (grad, query, key, value, mask, out, lse)
    return compiled.backward(*tensors, causal=True, wanted=wanted)


def _fake(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
    return compiled.heads_like(query), query.new_empty(query.shape[:3])


def _fake_backward(grad: Tensor, *tensors: Any) -> list[Tensor]:
    wanted = tensors[-1]
    return [compiled.heads_like(x) for x, want in zip(tensors, wanted, strict=False) if want]


_library.impl("causal_attention", _forward, "CPU")
_library.impl("causal_attention_backward", _backward, "CPU")
torch.library.register_fake("multiway::causal_attention", _fake, lib=_library)
torch.library.register_fake("multiway::causal_attention_backward", _fake_backward, lib=_library)
