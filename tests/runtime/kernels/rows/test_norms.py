"""Norms in one pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from comparing import check, draw
from pairs import pairs
from torch import Tensor
from torch.autograd import forward_ad

from multiway.compiler.lowering.dispatch import fast
from multiway.compiler.ops.layer_norm import layer_norm
from multiway.compiler.ops.rms_norm import rms_norm
from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.native.calls import ELEMENTS_PER_THREAD
from multiway.runtime.kernels.rows import norms as fused

NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


@pairs(
    indirect=["engine"],
    engine=["c", "plain"],
    norm=list(NORMS),
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    shape=[(2, 5, 33), (70, 17), (7,), (0, 8), (1, 256)],
    fixed=[(), (0,), (1,), (2,), (0, 1), (1, 2)],
)
def test_norms(
    engine: str, norm: str, dtype: torch.dtype, shape: tuple[int, ...], fixed: tuple[int, ...]
) -> None:
    affine = [draw(shape[-1], dtype=dtype, seed=s) for s in (1, 2)]
    inputs = [draw(*shape, dtype=dtype), *affine]
    ours, reference = partial(getattr(fused, norm), eps=1e-5), partial(NORMS[norm], eps=1e-5)
    check(ours, reference, inputs, fixed)
    check(ours, reference, inputs[:2])
    check(ours, reference, [inputs[0].double()])


def test_norms_on_several_threads_and_of_views(engine: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inputs = [draw(64, 4 * ELEMENTS_PER_THREAD // 64).t(), draw(64)]
        check(lambda *x: fused.rms_norm(*x, eps=1e-5), lambda *x: rms_norm(*x, eps=1e-5), inputs)
    finally:
        torch.set_num_threads(threads)


def test_norms_leave_to_torch_what_it_does_as_well() -> None:
    takes, of_layer_norm = (kernels()[name].takes for name in ("rms_norm", "layer_norm"))
    assert takes is not None and of_layer_norm is not None
    many = draw(1 << 15)
    assert takes(many[1:], eps=0.0) == "x has fewer than 32768 numbers"
    assert takes(many.half(), eps=0.0) == "x is torch.float16"
    assert takes(many.to("meta"), eps=0.0) == "x is on meta"
    with native.disabled():
        assert takes(many, eps=0.0) == "C kernels are switched off"
    reason = "torch's own takes one pass, too, but in bfloat16"
    assert of_layer_norm(many, eps=0.0) == reason
    assert of_layer_norm(many.bfloat16(), eps=0.0) == "x has fewer than 131072 numbers"


@pytest.mark.parametrize("name", list(NORMS))
def test_norms_fit_rows_that_their_scratch_holds(name: str) -> None:
    fits = kernels()[name].fits
    assert fits({}, {"D": 8192}) is None and fits({}, {}) is None
    assert fits({}, {"D": 8193}) == "rows of 8193 numbers"
    assert fits({}, {"D": 0}) == "rows of 0 numbers"


def test_a_layer_norm_of_many_in_bfloat16_is_taken() -> None:
    takes = kernels()["layer_norm"].takes
    assert takes is not None
    assert takes(draw(1 << 17).bfloat16(), eps=0.0) == native.refused("norms")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [1, 7, 48, 3072])
def test_bfloat16_is_float32_rounded_once(norm: str, width: int) -> None:
    if native.library("norms") is None:
        pytest.skip(f"no C kernel: {native.refused('norms')}")
    ours = getattr(fused, norm)
    x, gain, bias = (
        draw(*shape, dtype=torch.float32, seed=i).bfloat16()
        for i, shape in enumerate([(70, width), (width,), (width,)])
    )
    grad = draw(70, width, dtype=torch.float32, seed=3).bfloat16()

    def results(dtype: torch.dtype) -> list[Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in (x, gain, bias)]
        y = ours(*leaves, eps=1e-5)
        return [y, *torch.autograd.grad(y, leaves, grad.to(dtype))]

    for found, exact in zip(results(torch.bfloat16), results(torch.float32), strict=True):
        assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_transforms_and_forward_mode_get_torchs_operators(norm: str, dtype: torch.dtype) -> None:
    x, direction = (draw(4, 300, 128, dtype=dtype, seed=s) for s in (0, 1))
    ours, reference = partial(fast(norm), eps=1e-5), partial(NORMS[norm], eps=1e-5)
    for transform in (torch.func.vmap, lambda f: torch.func.grad(lambda t: f(t).square().sum())):
        torch.testing.assert_close(transform(ours)(x), transform(reference)(x))
    tangents = []
    for function in (ours, reference):
        with forward_ad.dual_level():
            y = function(forward_ad.make_dual(x, direction))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*tangents)
    assert tangents[0].any()
