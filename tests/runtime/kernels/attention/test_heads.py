"""Heads, their norm and rotary positions, against the ops they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import check, draw
from pairs import pairs as in_pairs
from torch import Tensor

from multiway.compiler.ops.layer_norm import layer_norm
from multiway.compiler.ops.rms_norm import rms_norm
from multiway.compiler.ops.rotary import rotary
from multiway.compiler.ops.split_heads import split_heads
from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.attention.heads import rotate_heads
from multiway.runtime.kernels.native import calls

NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def reference_heads(
    x: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    heads: int,
    norm: str,
    eps: float,
    pairs: str,
) -> Tensor:
    y = split_heads(x, heads=heads)
    y = NORMS[norm](y, gain, bias, eps=eps) if norm else y
    return rotary(y, cos, sin, pairs=pairs) if cos is not None else y


def angles(rows: int, length: int, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    turned = draw(rows, length, pairs)
    return turned.cos().to(dtype), turned.sin().to(dtype)


@in_pairs(
    indirect=["engine"],
    engine=["c", "plain"],
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    norm=["", "rms_norm", "layer_norm"],
    pairs=["half", "adjacent"],
    turned=[0, 2, 16],
    sizes=[(2, 5, 3, 33), (1, 3, 2, 32)],
)
def test_rotate_heads(
    engine: str,
    dtype: torch.dtype,
    norm: str,
    pairs: str,
    turned: int,
    sizes: tuple[int, ...],
) -> None:
    batch, length, heads, width = sizes
    tables = angles(batch, length, turned, torch.promote_types(dtype, torch.float32))
    attributes = {"heads": heads, "norm": norm, "eps": 1e-5, "pairs": pairs}
    affine = [draw(width, dtype=dtype, seed=s) for s in (1, 2)] if norm else []

    def apply(compute: Callable[..., Any]) -> Callable[..., Any]:
        def applied(packed: Tensor, *affine: Tensor) -> Tensor:
            x = packed.chunk(3, dim=-1)[1]  # a third of a packed projection
            cos, sin = (each.to(torch.promote_types(x.dtype, torch.float32)) for each in tables)
            given = (cos, sin) if turned else (None, None)
            return compute(x, *given, *affine, **attributes)

        return applied

    packed = draw(batch, length, 3 * heads * width, dtype=dtype)
    check(apply(rotate_heads), apply(reference_heads), [packed, *affine])


@pytest.mark.parametrize("fixed", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_rotate_heads_gives_only_the_gradients_asked_for(
    engine: str, fixed: tuple[int, ...]
) -> None:
    attributes = {"heads": 2, "norm": "layer_norm", "eps": 1e-5, "pairs": "half"}
    tables = angles(1, 5, 2, torch.float64)
    check(
        lambda x, *affine: rotate_heads(x, *tables, *affine, **attributes),
        lambda x, *affine: reference_heads(x, *tables, *affine, **attributes),
        [draw(3, 5, 12), draw(6), draw(6, seed=1)],
        fixed,
    )


@pytest.mark.parametrize(
    ("norm", "turned"), [("", 5), ("rms_norm", 0), ("rms_norm", 5), ("layer_norm", 5)]
)
@pytest.mark.parametrize("pairs", ["half", "adjacent"])
def test_bfloat16_is_float32_rounded_once(norm: str, pairs: str, turned: int) -> None:
    if native.library("rotate_heads") is None:
        pytest.skip(f"no C kernel: {native.refused('rotate_heads')}")
    attributes = {"heads": 3, "norm": norm, "eps": 1e-5, "pairs": pairs}
    x, grad = (draw(2, 7, 36, dtype=torch.float32, seed=s).bfloat16() for s in (0, 1))
    tables = angles(1, 7, turned, torch.float32) if turned else (None, None)
    affine = [draw(12, dtype=torch.float32, seed=s).bfloat16() for s in (2, 3)] if norm else []

    def results(dtype: torch.dtype) -> list[Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in (x, *affine)]
        y = rotate_heads(leaves[0], *tables, *leaves[1:], **attributes)
        back = grad.to(dtype).view(2, 7, 3, 12).transpose(1, 2)
        return [y, *torch.autograd.grad(y, leaves, back)]

    for found, exact in zip(results(torch.bfloat16), results(torch.float32), strict=True):
        assert torch.equal(found, exact.bfloat16())


def test_rotate_heads_on_several_threads(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ELEMENTS_PER_THREAD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        attributes = {"heads": 2, "norm": "rms_norm", "eps": 1e-5, "pairs": "half"}
        tables = angles(2, 5, 2, torch.float64)
        check(
            lambda x, gain: rotate_heads(x, *tables, gain, **attributes),
            lambda x, gain: reference_heads(x, *tables, gain, **attributes),
            [draw(2, 5, 12), draw(6)],
        )
    finally:
        torch.set_num_threads(threads)


def test_rotate_heads_takes_any_gradient_and_no_tokens(engine: str) -> None:
    attributes = {"heads": 2, "norm": "rms_norm", "eps": 1e-5, "pairs": "half"}
    x, gain = draw(2, 3, 8).requires_grad_(), draw(4).requires_grad_()
    tables = angles(1, 3, 2, torch.float64)
    for seed in (torch.ones(()).double().expand(2, 2, 3, 4), draw(4, 3, 2, 2).permute(3, 2, 1, 0)):
        found, exact = (
            torch.autograd.grad(f(x, *tables, gain, **attributes), [x, gain], seed)
            for f in (rotate_heads, reference_heads)
        )
        torch.testing.assert_close(found, exact)
    empty = rotate_heads(x[:, :0], *angles(1, 0, 2, torch.float64), gain, **attributes)
    empty.sum().backward()
    assert empty.shape == (2, 2, 0, 4) and not x.grad.any() and not gain.grad.any()


def test_rotate_heads_lies_as_attention_reads_it(engine: str) -> None:
    attributes = {"heads": 2, "norm": "rms_norm", "eps": 1e-5, "pairs": "half"}
    y = rotate_heads(draw(2, 3, 8), *angles(1, 3, 2, torch.float64), **attributes)
    assert y.transpose(1, 2).is_contiguous()


def test_rotate_heads_compiles() -> None:
    attributes = {"heads": 2, "norm": "rms_norm", "eps": 1e-5, "pairs": "adjacent"}
    inputs = [draw(2, 3, 8), *angles(1, 3, 2, torch.float64), draw(4)]
    compiled_heads = torch.compile(rotate_heads, fullgraph=True, backend="eager")
    truth = reference_heads(*inputs, **attributes)
    torch.testing.assert_close(compiled_heads(*inputs, **attributes), truth)


def test_rotate_heads_takes_no_tables_with_gradients() -> None:
    x, cos, sin = draw(2, 3, 8), *angles(1, 3, 2, torch.float64)
    attributes = {"heads": 2, "norm": "", "eps": 0.0, "pairs": "half"}
    takes = kernels()["rotate_heads"].takes
    assert takes is not None and takes(x, cos, sin, **attributes) is None
    assert takes(x, cos.requires_grad_(), sin, **attributes) == "cos and sin have gradients"
