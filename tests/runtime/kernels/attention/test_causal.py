"""Causal attention in C against the explicit softmax in float64, and all that it must give way to.

What the registered kernel of attention takes is tested in tests/compiler/fusions/test_fusing.py and
test_sdpa.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rounding import assert_no_farther, root_mean_square
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from multiway.compiler.lowering.dispatch import fast
from multiway.runtime.kernels import native
from multiway.runtime.kernels.attention.causal import compiled, op, takes
from multiway.runtime.kernels.attention.sdpa import attention
from multiway.runtime.measure.times import gemm_floor

needs_c = pytest.mark.skipif(
    native.library("attend") is None, reason=f"no C kernel: {native.refused('attend')}"
)
pytestmark = needs_c


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "FEWEST", 0)
    monkeypatch.setattr(op, "FEWEST_TRACKED", 0)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def explicit(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = True
) -> Tensor:
    """softmax over the keys that a query may see; 0 where there is none."""
    copies = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(copies, 1) for each in (key, value))
    see = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
    see = see.tril() if causal else see
    see = see if mask is None else see & mask
    scores = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    weights = torch.where(see, scores.exp(), 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-300) @ value


def laid_out(kind: str, *shape: int) -> Tensor:
    """[B, H, T, E]: contiguous, of a projection, of a packed one, or with a strided last axis."""
    batch, heads, length, width = shape
    if kind == "projection":
        x = torch.randn(batch, length, heads, width).transpose(1, 2)
    elif kind == "packed":
        x = torch.randn(batch, length, 3, heads, width)[:, :, 1].transpose(1, 2)
    elif kind == "columns":
        x = torch.randn(batch, heads, width, length).transpose(2, 3)
    elif kind == "shared":
        x = torch.randn(1, heads, length, width).expand(shape)
    else:
        x = torch.randn(shape)
    return x.detach().double()


def draw(seed: int) -> tuple[list[Tensor], Tensor | None]:
    """Query, key and value in float64, and a mask or none."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    batch, key_heads, group = r.randint(1, 3), r.randint(1, 3), r.choice([1, 1, 2, 3])
    length = r.choice([1, 3, 31, 63, 64, 65, 100, 128, 129, 200])
    width = r.choice([2, 5, 16, 17, 32, 48, 64, 80, 128])
    kinds = [r.choice(["plain", "projection", "packed", "columns", "shared"]) for _ in range(3)]
    heads = (key_heads * group, key_heads, key_heads)
    inputs = [laid_out(k, batch, h, length, width) for k, h in zip(kinds, heads, strict=True)]
    if r.random() < 0.6:
        return inputs, None
    return inputs, torch.rand(r.choice([1, batch]), 1, 1, length) < 0.7  # rows may see nothing


def run(compute: Callable[..., Tensor], inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """The result and the gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = compute(*leaves, **options)
    seed = torch.arange(1.0, y.numel() + 1).sin().view(y.shape).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, seed)]


def same_strides(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) for x in inputs]


def ours(*inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    y = attention(*inputs, mask, causal=True)
    assert y.grad_fn is None or y.grad_fn.name() == "_AttentionBackward"
    return y


def through_torch(*inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    with native.disabled():
        y = attention(*inputs, mask, causal=True)
    assert y.grad_fn is None or y.grad_fn.name() != "_AttentionBackward"
    return y


@pytest.mark.parametrize("seed", range(60))
def test_results_and_gradients(seed: int, three_threads: None) -> None:
    """In float64 by 12 digits; in float32 not much farther from it than torch's own."""
    inputs, mask = draw(seed)
    inputs = (
        inputs
        if inputs[0].shape[0] * inputs[1].shape[1] >= 3
        else [x.repeat(3, 1, 1, 1) for x in inputs]
    )
    if mask is not None and mask.shape[0] not in (1, inputs[0].shape[0]):
        mask = mask[:1]
    exact = run(lambda *x: explicit(*x, mask), inputs)
    for found, truth in zip(run(ours, inputs, mask=mask), exact, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    single = same_strides(inputs, torch.float32)
    pairs = zip(
        run(ours, single, mask=mask), run(through_torch, single, mask=mask), exact, strict=True
    )
    terms = inputs[0].shape[1] // inputs[1].shape[1] * max(inputs[0].shape[2:])
    for found, other, truth in pairs:
        assert found.dtype == torch.float32
        size = max(1.0, root_mean_square(truth))  # where little is seen, numbers like 1 cancel
        assert_no_farther(found, other, truth, terms=terms, size=size)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "keys"), [(5, 9), (70, 130), (130, 70), (1, 200)])
def test_other_numbers_of_keys(length: int, keys: int, causal: bool) -> None:
    """The C function is more general than what it is used for."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, n, 24, dtype=torch.float64) for n in (length, keys, keys)]
    grad = torch.randn(2, 2, length, 24, dtype=torch.float64)
    out, lse = compiled.forward(*inputs, None, causal)
    leaves = [x.requires_grad_() for x in inputs]
    truth = explicit(*leaves, causal=causal)
    torch.testing.assert_close(out, truth.detach(), rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(truth, leaves, grad)
    found = compiled.backward(grad, *(x.detach() for x in inputs), None, out, lse, causal)
    torch.testing.assert_close(found, list(expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_large_scores(size: float) -> None:
    """Where exp of a score overflows and most weights are nothing."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 1, 150, 32) for _ in range(3)]
    inputs[0] *= size
    exact = run(
        lambda *x: scaled_dot_product_attention(*x, is_causal=True),
        [x.double() for x in inputs],
    )
    for found, other, truth in zip(
        run(ours, inputs), run(through_torch, inputs), exact, strict=True
    ):
        # A score as large as `size` is off by as many roundings of 1, and by that its weight is.
        whole = size * max(1.0, root_mean_square(truth))
        assert_no_farther(found, other, truth, terms=150, size=whole)


@pytest.mark.parametrize("seen", [1, 2, 17, 49, 60, 64, 65, 81])
def test_nothing_is_seen_of_later_tokens(seen: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 100, 32) for _ in range(3)]
    before = attention(*inputs, causal=True)
    for each in inputs:
        each[:, :, seen:] = 1e4
    assert torch.equal(attention(*inputs, causal=True)[:, :, :seen], before[:, :, :seen])


def test_nan_stays_visible() -> None:
    inputs = [torch.randn(1, 1, 40, 16) for _ in range(3)]
    for which in range(3):
        spoilt = [x.clone() for x in inputs]
        spoilt[which][0, 0, 5, 3] = torch.nan
        assert attention(*spoilt, causal=True)[0, 0, 5].isnan().any()


def test_gradients_of_some() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, h, 70, 16, dtype=torch.float64) for h in (4, 2, 2)]
    all_of_them = run(ours, inputs)
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        y = ours(*leaves)
        seed = torch.arange(1.0, y.numel() + 1).sin().view(y.shape).to(y)
        y.backward(seed)
        for i, x in enumerate(leaves):
            assert (x.grad is not None) == (i in wanted)
            assert x.grad is None or torch.equal(x.grad, all_of_them[1 + i])


def test_the_result_lies_as_projections_read_it() -> None:
    x = torch.randn(2, 3, 20, 16)
    y = attention(x, x, x, causal=True)
    assert y.transpose(1, 2).is_contiguous()


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(1, 2, 20, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(x, x, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_under_a_checkpoint() -> None:
    inputs = [torch.randn(1, 2, 70, 16) for _ in range(3)]
    plain = run(ours, inputs)
    again = run(lambda *x: checkpoint(ours, *x, use_reentrant=False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_in_inference_mode() -> None:
    x = torch.randn(1, 2, 70, 16)
    with torch.inference_mode():
        found = attention(x, x, x, causal=True)
    assert torch.equal(found, attention(x, x, x, causal=True))


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 0, 5, 8), (2, 2, 0, 8)])
def test_of_nothing(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    y = attention(x, x, x, causal=True)
    y.sum().backward()
    assert y.shape == shape and x.grad is not None and x.grad.shape == shape


def test_a_number_of_threads_fixes_the_bits(three_threads: None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, h, 300, 32) for h in (4, 2, 2)]
    runs = [run(ours, inputs) for _ in range(3)]
    torch.set_num_threads(1)
    runs.append(run(ours, inputs))  # nothing is summed across threads: the same bits for any number
    for each in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], each, strict=True))


class Own(Tensor):
    """A type of somebody else."""


def test_what_is_not_taken() -> None:
    x = torch.randn(2, 4, 20, 16)
    assert takes(x, x, x, None)
    keys, mask = x[:, :3], torch.ones(2, 1, 1, 20, dtype=torch.bool)
    assert takes(x, x, x, mask) and takes(x, x, x, mask[:1])
    refused = [
        (x, keys, keys, None),
        (x, x[:, :, :7], x[:, :, :7], None),
        (x, x, x[..., :7], None),
        (x, x[:1], x[:1], None),
        (x.bfloat16(), x.bfloat16(), x.bfloat16(), None),
        (x, x.double(), x, None),
        (x.to("meta"), x.to("meta"), x.to("meta"), None),
        (x.as_subclass(Own), x, x, None),
        (x, x, x, mask.expand(2, 1, 20, 20)),
        (x, x, x, mask.float()),
        (*[torch.randn(1, 2, 20, op.WIDEST + 1)] * 3, None),
    ]
    for each in refused:
        assert not takes(*each)
    with native.disabled():
        assert not takes(x, x, x, None)
    with torch.autocast("cpu"):
        assert not takes(x, x, x, None)
        assert attention(x, x, x, causal=True).dtype == torch.bfloat16


def test_few_queries_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "FEWEST", 2 * 4 * 20)
    monkeypatch.setattr(op, "FEWEST_TRACKED", 2 * 4 * 20 + 1)
    x = torch.randn(2, 4, 20, 16)
    assert takes(x, x, x, None) and not takes(x[:1], x[:1], x[:1], None)
    x.requires_grad_()
    assert not takes(x, x, x, None)
    with torch.no_grad():
        assert takes(x, x, x, None)


def test_more_threads_than_key_heads_are_left_to_torch(three_threads: None) -> None:
    x, key = torch.randn(1, 4, 20, 16, requires_grad=True), torch.randn(1, 2, 20, 16)
    assert not takes(x, key, key, None) and takes(x, x, x, None)
    with torch.no_grad():
        assert takes(x, key, key, None)


def test_gives_way_to_functional_transforms() -> None:
    x = torch.randn(1, 2, 20, 16, dtype=torch.float64)
    fused = fast("attention")
    found = torch.func.grad(lambda y: fused(y, y, y, causal=True).square().sum())(x)
    leaf = x.clone().requires_grad_()
    ours(leaf, leaf, leaf).square().sum().backward()
    torch.testing.assert_close(found, leaf.grad)
    many = torch.func.vmap(lambda y: fused(y, y, y, causal=True))(x[None].repeat(3, 1, 1, 1, 1))
    torch.testing.assert_close(many[2], attention(x, x, x, causal=True))


def test_gives_way_to_compiling_and_fake_tensors() -> None:
    x = torch.randn(1, 2, 20, 16)

    def compute(y: Tensor) -> Tensor:
        return attention(y, y, y, causal=True)

    compiled_one = torch.compile(compute, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled_one(x), compute(x))
    program = torch.export.export(Attend(), (x,))
    assert "causal_attention" not in str(program.graph)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert compute(fake).shape == x.shape


class Attend(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return attention(x, x, x, causal=True)


def test_the_operators_are_sound() -> None:
    """Their shapes without numbers, and that they change nothing they are given."""
    query, key, value = (torch.randn(2, h, 20, 16) for h in (4, 2, 2))
    mask = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    out, lse = torch.ops.multiway.causal_attention(query, key, value, mask)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.multiway.causal_attention.default, (query, key, value, mask), test_utils=checks
    )
    torch.library.opcheck(
        torch.ops.multiway.causal_attention_backward.default,
        (out, query, key, value, None, out, lse, [True, False, True]),
        test_utils=checks,
    )


def test_the_floor_of_a_step_counts_it() -> None:
    inputs = [torch.randn(2, h, 20, 16, requires_grad=True) for h in (4, 2, 2)]
    floor = gemm_floor(lambda: ours(*inputs).sum().backward())
    assert floor.counts() == {"causal_attention": 1, "causal_attention_backward": 1}
    assert floor.flops == 2 * (16 + 16) * 20 * (2 * 4 * 20) * 3.5
    floor()
