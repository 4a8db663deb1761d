"""Attention through torch's scaled_dot_product_attention: no score matrix on the CPU.

Causal attention on the CPU goes to `causal`, in C, where that is there: torch's flash path works
on blocks of 512 keys, so that up to 512 it computes all that nobody sees.

What torch 2.13 takes by its flash path on the CPU (measured with `torch._fused_sdp_choice`):
float64, float32, bfloat16 and float16, with and without gradients, any layout of query, key and
value whose last axis is contiguous, fewer key than query heads (`enable_gqa`, both directions),
boolean masks of [B or 1, 1, T or 1, S] as they are, S != T, key and value broadcast over the batch.
It does not take a strided last axis (copied here first), nor S = 0 or T = 0 (nothing to do).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from multiway.runtime.kernels.attention import causal as in_c
from multiway.runtime.kernels.kernel import Kernel, autocasts


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool
) -> Tensor:
    """softmax(query key' / sqrt(E)) value, [B, H, T, E].

    query: [B, H, T, E]; key, value: [B, K, S, E], query head h reads key head h // (H / K).
    mask: [B or 1, 1, T or 1, S] bool, true where a query may see a key. causal: position t sees the
    keys 0 .. t (aligned at the first key where T != S).

    A row that may see nothing gives 0 on the CPU, and its gradients are 0; the op's decomposition
    gives NaN there. Half precision: scores and softmax in float32, as in the decomposition.
    """
    if causal and in_c.takes(query, key, value, mask):
        return in_c.attend(query, key, value, mask)
    query, key, value = (_rows(each) for each in (query, key, value))
    grouped = key.shape[1] != query.shape[1]
    if grouped and _repeats(query, mask):
        copies = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(copies, 1) for each in (key, value))
        grouped = False
    if causal and mask is not None and not _both(query, key):
        positions = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask, causal = mask & positions.tril(), False
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, enable_gqa=grouped
    )


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last axis: without one torch writes the scores out."""
    # `contiguous` gives an axis of one number back with the odd stride that it has.
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def _repeats(query: Tensor, mask: Tensor | None) -> bool:
    """Whether grouped key heads are written out for each query head."""
    if not query.is_cpu:
        return mask is not None  # off the CPU no fused path takes both
    # The flash path adds the key gradients of a group in the type itself: measured five times
    # farther from float64 than the sum behind a copy, which is taken in float32.
    return query.dtype.itemsize < 4 and torch.is_grad_enabled()


def _both(query: Tensor, key: Tensor) -> bool:
    """Whether this call may pass a mask and `is_causal`, so that no [T, S] mask is built.

    The flash path on the CPU skips the keys after t and reads the mask for the others: a quarter
    of the time less. torch documents the two as exclusive, hence the trial, and never in a program
    that may run elsewhere.
    """
    if not query.is_cpu or torch.compiler.is_compiling():
        return False
    if 0 in query.shape or 0 in key.shape:
        return False
    return type(query) in (Tensor, torch.nn.Parameter) and _takes_both()


@functools.cache
def _takes_both() -> bool:
    """Whether this torch computes a mask together with `is_causal` on the CPU, and rightly."""
    ramp = torch.arange(60.0).reshape(1, 1, 5, 12).sin()
    mask = torch.tensor([True, False, True, True, False])[None, None, None]
    combined = mask & torch.ones(5, 5, dtype=torch.bool).tril()
    compute = torch.nn.functional.scaled_dot_product_attention
    try:
        found = compute(ramp, ramp, ramp, mask, is_causal=True)
    except (RuntimeError, ValueError):
        return False
    return torch.allclose(found, compute(ramp, ramp, ramp, combined), atol=1e-6)


def _takes(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool
) -> str | None:
    if query.dtype == key.dtype == value.dtype or autocasts(query):
        return None  # autocast brings all three to one type
    return f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}"


KERNELS = [
    Kernel(
        op="attention",
        run=attention,
        takes=_takes,
        traces=_takes,
        doc="torch's scaled_dot_product_attention, or causal in C; neither holds a score matrix",
        portable=True,
    )
]
