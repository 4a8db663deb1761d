"""The generator of mixing weights, against the norm written in front: float64 decides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comparing import check, draw
from pairs import pairs
from rounding import assert_near, root_mean_square
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.mix import token_weights as module
from multiway.runtime.kernels.mix import token_weights_compiled
from multiway.runtime.kernels.mix.token_weights import token_weights

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
needs_c = pytest.mark.skipif(
    native.library("token_weights") is None,
    reason=f"no C kernel: {native.refused('token_weights')}",
)


def inputs(rows: int, width: int, hidden: int, ways: int, sources: int) -> list[Tensor]:
    """x [2, rows, width], hidden [hidden, width], output and static."""
    shapes = [(2, rows, width), (hidden, width), (ways * sources, hidden), (ways, sources)]
    factors = [1, width**-0.5, hidden**-0.5, 1]
    drawn = [draw(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]
    return [x * factor for x, factor in zip(drawn, factors, strict=True)]


def compare(given: Sequence[Tensor], kind: str, fixed: Sequence[int] = ()) -> None:
    ways = given[3].shape[0]

    def kernel(*tensors: Tensor) -> Tensor:
        return token_weights(*tensors, ways=ways, eps=1e-5, kind=kind)

    def reference(x: Tensor, hidden: Tensor, output: Tensor, static: Tensor) -> Tensor:
        normed = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        weights = ACTIVATIONS[kind](normed @ hidden.t()) @ output.t()
        return weights.unflatten(-1, static.shape) + static

    check(kernel, reference, given, fixed)


@pairs(kind=ACTIVATIONS, fixed=[(), (0,), (1, 2), (0, 3)], path=["c", "torch"])
def test_results_and_gradients(
    kind: str, fixed: Sequence[int], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "torch":
        monkeypatch.setattr(module, "_in_c", lambda *_, **__: False)
    compare(inputs(9, 20, 13, 4, 3), kind, fixed)


@needs_c
@pytest.mark.parametrize(
    ("rows", "width", "features", "outputs"),
    [
        *((0, 4, 3, 2), (1, 3, 1, 1), (24, 64, 32, 16), (5, 7, 17, 33), (16, 40, 30, 5)),
        *((17, 7, 17, 33), (3, 1100, 130, 70), (70, 1100, 130, 70)),
    ],
)
@pytest.mark.parametrize("shifted", [True, False])
def test_sizes_of_blocks_and_panels(
    rows: int, width: int, features: int, outputs: int, shifted: bool
) -> None:
    shapes = [(rows, width), (features, width), (outputs, features), (rows, features)]
    x, hidden, output, grad = (
        draw(*shape, dtype=torch.float32, seed=i) / shape[1] ** (0.5 if 0 < i < 3 else 0)
        for i, shape in enumerate(shapes)
    )
    shift = draw(outputs, dtype=torch.float32) if shifted else None
    exact = x.double().requires_grad_()
    scale = (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    raw = (exact @ hidden.double().t()).detach().requires_grad_()
    active = F.gelu(raw * scale)
    slopes = torch.autograd.grad(active, (raw, exact), grad.double())
    want = active @ output.double().t() + (0 if shift is None else shift)
    shape = rows, outputs
    found, kept, scales = token_weights_compiled.forward(
        x, hidden, output, shift, 1e-5, shape, keep=True
    )
    assert kept is not None and scales is not None
    again, *grads, total = token_weights_compiled.backward(
        kept, x, scales, grad, found, of_rows=True
    )
    ours = (found, kept, scales, again, *grads)
    for one, truth in zip(ours, (want, raw, scale, active, *slopes), strict=True):
        size = max(
            1.0, root_mean_square(truth)
        )  # of what is summed: the shift may cancel the product
        assert_near(one, truth.detach(), terms=width, size=size)
    assert_near(total, found.double().sum(0), terms=1)  # summed in float64
    assert token_weights_compiled.backward(kept, x, scales, grad, of_rows=False)[2:] == (None, None)
    bare, *nothing = token_weights_compiled.forward(
        x, hidden, output, shift, 1e-5, shape, keep=False
    )
    assert torch.equal(bare, found) and nothing == [None, None]


@needs_c
def test_rows_run_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("forward", "backward"):
        function = getattr(token_weights_compiled, name)

        def watched(*given: Tensor, name: str = name, function=function, **more: bool):  # type: ignore[no-untyped-def]
            ran.append(name)
            return function(*given, **more)

        monkeypatch.setattr(token_weights_compiled, name, watched)
    given = inputs(260, 256, 64, 4, 7)
    compare(given, "gelu")
    assert ran == ["forward", "backward"]
    ran.clear()
    compare([each.transpose(0, 1) if each.ndim == 3 else each for each in given], "gelu")
    with torch.no_grad():
        token_weights(*given, ways=4, eps=1e-5, kind="gelu")
    assert ran == ["forward", "backward", "forward"]


@needs_c
def test_what_follows_operators_sees_the_products() -> None:
    given = inputs(9, 20, 13, 4, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        token_weights(*given, ways=4, eps=1e-5, kind="gelu")
    assert counted.get_total_flops() == 2 * 18 * 13 * (20 + 12)


@needs_c
@pytest.mark.parametrize("length", [3, 30])
def test_what_is_not_finite_passes(length: int) -> None:
    given = inputs(length, 20, 13, 4, 3)
    given[0][0, 1, 2] = torch.nan
    found = token_weights(*given, ways=4, eps=1e-5, kind="gelu")
    assert found[0, 1].isnan().all() and found[0, 0].isfinite().all() and found[1].isfinite().all()


@needs_c
@pytest.mark.parametrize("length", [0, 3, 9, 40])
def test_bfloat16_is_float32_rounded_once(length: int) -> None:
    given = [each.bfloat16() for each in inputs(length, 20, 13, 4, 3)]
    attributes = {"ways": 4, "eps": 1e-5, "kind": "gelu"}
    takes = kernels()["token_weights"].takes
    assert takes is not None
    with torch.no_grad():
        assert takes(*given, **attributes) is None
        found = token_weights(*given, **attributes)
        exact = token_weights(*[each.float() for each in given], **attributes)
        assert torch.equal(found, exact.bfloat16())
        assert takes(*given, **{**attributes, "kind": "silu"}) is not None
        with FlopCounterMode(display=False):
            assert takes(*given, **attributes) is not None
        with native.disabled():
            assert takes(*given, **attributes) is not None
            plain = token_weights(*given, **attributes)
        torch.testing.assert_close(plain, found, rtol=0.05, atol=0.05)
        bare = token_weights(*given[:3], **attributes)
        exact = token_weights(*[each.float() for each in given[:3]], **attributes)
        assert torch.equal(bare, exact.bfloat16())
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [each.to(dtype).requires_grad_() for each in given]
        assert takes(*leaves, **attributes) is None
        y = token_weights(*leaves, **attributes)
        seed = draw(*y.shape, dtype=torch.float32).bfloat16().to(dtype)
        results.append([each.bfloat16() for each in (y, *torch.autograd.grad(y, leaves, seed))])
    for wide, half in zip(*results, strict=True):
        assert torch.equal(wide, half)
