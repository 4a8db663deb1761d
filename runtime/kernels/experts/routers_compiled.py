"""Routers in C (routers.c): float32 and float64 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native.calls import SUFFIX, check_memory, threads

SCORES = ("softmax", "sigmoid")  # numbered as in routers.c
WIDEST = 1024
TINY = 1e-20  # as in compiler/ops/top_k_gates.py
COSTLY = 16  # an exponential takes as long as so many passes over a number


class _Gates(ctypes.Structure):
    """`struct gates` of routers.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "experts", "most", "score")),
        *((name, ctypes.c_int64) for name in ("normalise", "threads")),
        *((name, ctypes.c_double) for name in ("scale", "tiny")),
        *((name, ctypes.c_void_p) for name in ("logits", "bias", "scores", "gates")),
        *((name, ctypes.c_void_p) for name in ("grad", "dlogits")),
    ]


class _Statistics(ctypes.Structure):
    """`struct statistics` of routers.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "length", "experts", "score", "threads")),
        *((name, ctypes.c_void_p) for name in ("gates", "logits", "wanted", "padding")),
        *((name, ctypes.c_void_p) for name in ("load", "probability", "z", "entropy")),
        *((name, ctypes.c_void_p) for name in ("dropped", "there")),
        *((name, ctypes.c_void_p) for name in ("dprobability", "dz", "dentropy", "dlogits")),
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The attributes of top_k_gates, without groups."""

    most: int
    score: str
    normalise: bool
    scale: float


def gates(plan: Plan, logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gates and scores [*, X] of logits [*, X] and bias [X]."""
    logits = logits.contiguous()
    bias = None if bias is None else bias.contiguous()
    found, scores = torch.empty_like(logits), torch.empty_like(logits)
    call = _gates_call(plan, scores, found)
    call.logits, call.bias = logits.data_ptr(), None if bias is None else bias.data_ptr()
    _run("gates_forward", call, logits)
    return found, scores


def gates_backward(plan: Plan, scores: Tensor, found: Tensor, grad: Tensor) -> Tensor:
    """The gradient of logits from that of gates. scores, found: what `gates` gave."""
    grad, dlogits = grad.contiguous(), torch.empty_like(scores)
    assert grad.dtype == scores.dtype and grad.shape == scores.shape
    call = _gates_call(plan, scores, found)
    call.grad, call.dlogits = grad.data_ptr(), dlogits.data_ptr()
    _run("gates_backward", call, scores)
    return dlogits


def _gates_call(plan: Plan, scores: Tensor, found: Tensor) -> _Gates:
    experts = scores.shape[-1]
    tokens = scores.numel() // experts
    assert 0 < plan.most <= experts <= WIDEST
    return _Gates(
        tokens=tokens,
        experts=experts,
        most=plan.most,
        score=SCORES.index(plan.score),
        normalise=plan.normalise,
        threads=threads(scores.numel() * COSTLY, tokens),
        scale=plan.scale,
        tiny=TINY,
        scores=scores.data_ptr(),
        gates=found.data_ptr(),
    )


def statistics(
    score: str, found: Tensor, logits: Tensor, wanted: Tensor | None, padding: Tensor | None
) -> tuple[Tensor, ...]:
    """router_statistics: found (gates), logits, wanted [B, T, X]; padding [B, T] -> six tensors."""
    given = [each.contiguous() for each in (found, logits)]
    rest = [None if each is None else each.contiguous() for each in (wanted, padding)]
    call = _statistics_call(score, given[1], rest[1])
    call.gates, call.wanted = given[0].data_ptr(), None if rest[0] is None else rest[0].data_ptr()
    rows, _, experts = logits.shape
    wide = [logits.new_empty(rows, experts) for _ in range(2)]
    narrow = [logits.new_empty(rows) for _ in range(4)]
    call.load, call.probability = (each.data_ptr() for each in wide)
    call.z, call.entropy, call.dropped, call.there = (each.data_ptr() for each in narrow)
    _run("statistics_forward", call, logits)
    return *wide, *narrow


def statistics_backward(
    score: str, logits: Tensor, padding: Tensor | None, grads: Sequence[Tensor | None]
) -> Tensor:
    """The gradient of logits, from those of probability [B, X], z and entropy [B]."""
    logits = logits.contiguous()
    padding = None if padding is None else padding.contiguous()
    given = [None if each is None else each.contiguous() for each in grads]
    dlogits = torch.empty_like(logits)
    call = _statistics_call(score, logits, padding)
    call.dprobability, call.dz, call.dentropy = (
        None if each is None else each.data_ptr() for each in given
    )
    call.dlogits = dlogits.data_ptr()
    _run("statistics_backward", call, logits)
    return dlogits


def _statistics_call(score: str, logits: Tensor, padding: Tensor | None) -> _Statistics:
    rows, length, experts = logits.shape
    assert logits.is_contiguous() and 0 < experts <= WIDEST
    assert padding is None or (padding.dtype == torch.bool and padding.shape == (rows, length))
    return _Statistics(
        rows=rows,
        length=length,
        experts=experts,
        score=SCORES.index(score),
        threads=threads(logits.numel() * COSTLY, rows),
        logits=logits.data_ptr(),
        padding=None if padding is None else padding.data_ptr(),
    )


def _run(name: str, call: ctypes.Structure, x: Tensor) -> None:
    loaded = native.library("routers")
    assert loaded is not None
    check_memory(getattr(loaded, f"{name}_{SUFFIX[x.dtype]}")(ctypes.byref(call)), name)
