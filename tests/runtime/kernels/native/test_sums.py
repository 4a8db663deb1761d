"""Kernels in C sum over rows in float64: a gradient of few numbers errs no more, the more rows
there are. In float32, 2^16 numbers one after the other are off by 20 roundings of it and more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from rounding import assert_near, unit
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.attention.heads.rotate import rotate_heads
from multiway.runtime.kernels.depth_attention import depth_attention
from multiway.runtime.kernels.mix import fused_mix
from multiway.runtime.kernels.mix import token_weights_compiled as token_weights
from multiway.runtime.kernels.rows import gelu_compiled
from multiway.runtime.kernels.rows.norms import layer_norm

ROWS, WIDTH = 1 << 16, 8


def of_bias(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gradient of a bias that is added to all rows: the sum of `grad` [ROWS, WIDTH]."""

    def run(grad: Tensor) -> Tensor:
        x, bias = torch.randn(1, ROWS, WIDTH), torch.zeros(WIDTH, requires_grad=True)
        (found,) = torch.autograd.grad(compute(x, bias).flatten(), bias, grad.flatten())
        return found

    return run


def of_norm(x: Tensor, bias: Tensor) -> Tensor:
    return layer_norm(x, torch.ones(WIDTH), bias, eps=1e-5)


def of_mix(x: Tensor, bias: Tensor) -> Tensor:
    plan = {"norm": "layer_norm", "eps": 1e-5, "normed": [0], "raw": []}
    return fused_mix([x], torch.ones(1, 1), [torch.ones(WIDTH)], [bias], **plan)[0]


def of_depth_attention(x: Tensor, bias: Tensor) -> Tensor:
    plan = {"groups": 1, "eps": 1e-5, "norm": "layer_norm", "norm_eps": 1e-5, "normed": 1, "raw": 0}
    return depth_attention([x], torch.ones(WIDTH), None, [torch.ones(WIDTH)], [bias], **plan)[0]


def of_heads(x: Tensor, bias: Tensor) -> Tensor:
    plan = {"heads": 1, "norm": "layer_norm", "eps": 1e-5, "pairs": "half"}
    return rotate_heads(x, None, None, torch.ones(WIDTH), bias, **plan)


def of_gelu(grad: Tensor) -> Tensor:
    """Its slope at 0 is a half."""
    plan = gelu_compiled.Plan(norm="", eps=0.0)
    return 2 * gelu_compiled.backward(plan, torch.zeros_like(grad), None, grad).summed


def of_token_weights(grad: Tensor) -> Tensor:
    raw, rows, scales = torch.zeros(ROWS, 1), torch.ones(ROWS, 1), torch.ones(ROWS)
    *_, total = token_weights.backward(raw, rows, scales, raw, grad, of_rows=False)
    assert total is not None
    return total


CASES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "norms": ("norms", of_bias(of_norm)),
    "mix": ("mix", of_bias(of_mix)),
    "depth_attention": ("depth_attention", of_bias(of_depth_attention)),
    "heads": ("rotate_heads", of_bias(of_heads)),
    "gelu": ("gelu", of_gelu),
    "token_weights": ("token_weights", of_token_weights),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_over_rows_do_not_err_more_the_more_rows_there_are(name: str) -> None:
    library, compute = CASES[name]
    if native.library(library) is None:
        pytest.skip(f"no C kernel: {native.refused(library)}")
    grad = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) + 0.5
    exact = grad.double().sum(0)
    in_order = torch.from_numpy(numpy.add.accumulate(grad.numpy())[-1])
    assert (in_order.double() - exact).abs().max() > 20 * unit(torch.float32) * exact.max()
    assert_near(compute(grad), exact, terms=1)
