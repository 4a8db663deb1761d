"""Attention against its reference, in every type and layout."""

from __future__ import annotations

import pytest
import torch
from comparing import check, draw, run
from pairs import pairs
from torch import Tensor, nn

from multiway.compiler.ops.attention import attention as attention_reference
from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.attention import sdpa as attention_module
from multiway.runtime.kernels.attention.sdpa import attention

HALVES = [torch.bfloat16, torch.float16]


def see(shape: tuple[int, ...]) -> Tensor:
    """A mask by which every query sees the first key."""
    mask = draw(*shape) > -0.3
    mask[..., 0] = True
    return mask


@pairs(
    dtype=[torch.float64, torch.float32, *HALVES],
    causal=[False, True],
    masked=["", "one", "each", "rows"],
    sizes=[(7, 7, 4), (5, 9, 2), (9, 5, 1)],
)
def test_attention(
    dtype: torch.dtype, causal: bool, masked: str, sizes: tuple[int, int, int]
) -> None:
    length, keys, key_heads = sizes
    shapes = {"one": (1, 1, 1, keys), "each": (2, 1, 1, keys), "rows": (2, 1, length, keys)}
    mask = see(shapes[masked]) if masked else None
    key, value = (draw(2, keys, key_heads, 6, dtype=dtype, seed=s) for s in (1, 2))
    inputs = [draw(2, 4, length, 6, dtype=dtype), key.transpose(1, 2), value.transpose(1, 2)]
    check(
        lambda *x: attention(*x, mask=mask, causal=causal),
        lambda *x: attention_reference(*x, mask=mask, causal=causal),
        inputs,
    )


def test_attention_takes_any_layout_and_only_the_gradients_asked_for() -> None:
    inputs = [draw(2, 3, 6, 5, seed=s).transpose(-1, -2) for s in range(3)]
    for fixed in ([], [0], [1, 2]):
        check(
            lambda *x: attention(*x, causal=True),
            lambda *x: attention_reference(*x, causal=True),
            inputs,
            fixed,
        )


def test_a_head_of_one_channel_with_an_odd_stride_and_a_mask() -> None:
    strides = (15, 5, 1, 7)  # contiguous, to torch
    inputs = [draw(2, 3, 5, 2, seed=s).as_strided((2, 3, 5, 1), strides) for s in range(3)]
    mask = see((2, 1, 1, 5))
    with native.disabled():
        found = attention(*inputs, mask=mask, causal=True)
    want = attention_reference(*inputs, mask=mask, causal=True)
    torch.testing.assert_close(found, want)


def test_a_row_that_sees_nothing_gives_zero() -> None:
    inputs = [draw(2, 2, 4, 3, seed=s) for s in range(3)]
    mask = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    mask[1] = False
    for causal in (False, True):
        y, *grads = run(lambda *x, c=causal: attention(*x, mask=mask, causal=c), inputs)
        assert not y[1].any() and y[0].all()
        assert all(not g[1].any() and not g.isnan().any() for g in grads)


def test_attention_is_the_same_without_a_mask_beside_causal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, mask = [draw(2, 2, 40, 8, seed=s) for s in range(3)], see((2, 1, 1, 40))
    both = attention(*inputs, mask, causal=True)
    monkeypatch.setattr(attention_module, "_takes_both", lambda: False)
    torch.testing.assert_close(attention(*inputs, mask, causal=True), both)


def test_attention_holds_no_score_matrix() -> None:
    query = draw(1, 2, 64, 8).requires_grad_()
    y = attention(query, query, query, see((1, 1, 1, 64)), causal=True)
    assert "Flash" in y.grad_fn.name()


def test_attention_exports() -> None:
    class Attend(nn.Module):
        def forward(self, query: Tensor, mask: Tensor) -> Tensor:
            return attention(query, query, query, mask, causal=True)

    inputs = (draw(2, 3, 7, 4), see((2, 1, 1, 7)))
    program = torch.export.export(Attend(), inputs)
    torch.testing.assert_close(program.module()(*inputs), Attend()(*inputs))


def test_attention_of_no_queries_is_empty() -> None:
    key = draw(2, 2, 3, 4)
    assert attention(draw(2, 2, 0, 4), key, key, causal=False).shape == (2, 2, 0, 4)


def test_attention_takes_no_different_types() -> None:
    takes = kernels()["attention"].takes
    assert takes is not None
    x = draw(1, 1, 2, 2)
    assert takes(x, x, x, causal=False) is None
    text = "query, key and value are torch.float32, torch.float64 and torch.float64"
    assert takes(x.float(), x, x, causal=False) == text


def test_every_kernel_is_registered() -> None:
    mine = {"attention", "packed_linear", "linear_cross_entropy", "rotate_heads"}
    assert mine | {"rms_norm"} <= set(kernels())
