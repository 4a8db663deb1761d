"""Kernels against the ops' references in float64: results, all gradients, and their conditions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiway.compiler.ops.attention import attention as attention_reference
from multiway.compiler.ops.cross_entropy import cross_entropy
from multiway.compiler.ops.layer_norm import layer_norm
from multiway.compiler.ops.rms_norm import rms_norm
from multiway.compiler.ops.rotary import rotary
from multiway.compiler.ops.split_heads import split_heads
from multiway.runtime.kernels import attention as attention_module
from multiway.runtime.kernels import kernels, native, packed_linear
from multiway.runtime.kernels import linear_cross_entropy as loss_module
from multiway.runtime.kernels.attention import attention
from multiway.runtime.kernels.heads import rotate_heads
from multiway.runtime.kernels.linear_cross_entropy import linear_cross_entropy
from multiway.runtime.kernels.native import calls
from multiway.runtime.kernels.native.calls import ELEMENTS_PER_THREAD
from multiway.runtime.kernels.norms import norm_pair
from multiway.runtime.kernels.norms import rms_norm as fused_rms_norm

HALVES = [torch.bfloat16, torch.float16]


def run(compute: Callable[..., Any], inputs: Sequence[Tensor], fixed: Sequence[int] = ()) -> list:
    """Results of `compute`, then the gradients in the inputs but for those at `fixed`."""
    leaves = [x.detach() for x in inputs]
    wanted = [x for i, x in enumerate(leaves) if x.is_floating_point() and i not in fixed]
    for x in wanted:
        x.requires_grad_()
    found = compute(*leaves)
    results = [found] if isinstance(found, Tensor) else list(found)
    tracked = [y for y in results if y.requires_grad]
    seeds = [torch.arange(1.0, y.numel() + 1).sin().view(y.shape).to(y) for y in tracked]
    grads = torch.autograd.grad(tracked, wanted, seeds, allow_unused=True)
    return [y.detach() for y in results] + list(grads)


def check(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    fixed: Sequence[int] = (),
) -> None:
    """Equal in float64; in a narrower type at most three times as far from it as the reference."""
    floating = [x for x in inputs if x.is_floating_point()]
    dtype = floating[0].dtype
    exact = run(reference, [x.double() if x.is_floating_point() else x for x in inputs], fixed)
    found, plain = run(kernel, inputs, fixed), run(reference, inputs, fixed)
    floor = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
    scale = max((float(x.abs().max()) for x in exact if x.numel()), default=1.0) + 1e-9
    for one, other, truth in zip(found, plain, exact, strict=True):
        assert one.dtype == other.dtype and one.shape == truth.shape
        error, allowed = ((x.double() - truth).norm() / scale for x in (one, other))
        assert error <= 3 * allowed + floor * max(1, truth.numel()) ** 0.5


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# Attention


def see(shape: tuple[int, ...]) -> Tensor:
    """A mask by which every query sees the first key."""
    mask = draw(*shape) > -0.3
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["", "one", "each", "rows"])
@pytest.mark.parametrize(("length", "keys", "key_heads"), [(7, 7, 4), (5, 9, 2), (9, 5, 1)])
def test_attention(
    dtype: torch.dtype, causal: bool, masked: str, length: int, keys: int, key_heads: int
) -> None:
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


def test_attention_refuses_different_types() -> None:
    refuses = kernels()["attention"].refuses
    x = draw(1, 1, 2, 2)
    assert refuses(x, x, x, causal=False) is None
    text = "query, key and value are torch.float32, torch.float64 and torch.float64"
    assert refuses(x.float(), x, x, causal=False) == text


# Packed linears


def plain_linears(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """What packed_linear computes: weights first, then biases."""
    count = len(parameters) // 2
    pairs = zip(parameters[:count], parameters[count:], strict=True)
    return tuple(nn.functional.linear(x, w, b) for w, b in pairs)


def packed_linears(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    count = len(parameters) // 2
    return packed_linear.packed_linear(x, parameters[:count], parameters[count:])


@pytest.fixture
def every_path(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No call is too small for the faster paths."""
    monkeypatch.setattr(packed_linear, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(packed_linear, "MANY_TOKENS", 0)
    return monkeypatch


def parts(widths: Sequence[int], *trailing: int, dtype: torch.dtype) -> list[Tensor]:
    """Tensors one behind the other in one storage."""
    return list(draw(sum(widths), *trailing, dtype=dtype).split(list(widths)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["adjacent", "concatenated", "apart"])
@pytest.mark.parametrize("fixed", [(), (0,), (1, 2), (1, 2, 3), (4, 5, 6), (2, 6)])
@pytest.mark.parametrize("shape", [(2, 5, 7), (7,), (0, 7)])
def test_packed_linear(
    every_path: pytest.MonkeyPatch,
    dtype: torch.dtype,
    way: str,
    fixed: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    if way == "apart":
        every_path.setattr(packed_linear, "_one_product", lambda *_: False)
    widths = (3, 5, 2)
    parameters = [*parts(widths, 7, dtype=dtype), *parts(widths, dtype=dtype)]
    if way == "concatenated":
        parameters = [each.clone() for each in parameters]
    assert packed_linear.adjacent(parameters[:3]) == (way != "concatenated")
    check(packed_linears, plain_linears, [draw(*shape, dtype=dtype), *parameters], fixed)


def test_packed_linear_takes_a_view_and_no_biases(every_path: pytest.MonkeyPatch) -> None:
    weights = parts((3, 5), 4, dtype=torch.float64)
    check(
        lambda x, *w: packed_linear.packed_linear(x, w),
        lambda x, *w: tuple(nn.functional.linear(x, each) for each in w),
        [draw(4, 6).t(), *weights],
    )


def test_packed_linear_is_one_product(every_path: pytest.MonkeyPatch) -> None:
    inputs = [draw(6, 7), *parts((3, 5, 2), 7, dtype=torch.float64)]
    with torch.profiler.profile() as profile:
        packed_linear.packed_linear(inputs[0], inputs[1:])
    names = [event.name for event in profile.events()]
    assert names.count("aten::mm") == 1 and "aten::cat" not in names


def test_gradients_of_one_weight_change_alone(every_path: pytest.MonkeyPatch) -> None:
    weights = [nn.Parameter(each.clone()) for each in parts((3, 5), 4, dtype=torch.float64)]
    packed_linear.adjoin(weights)
    for _ in range(2):  # the second adds to the first
        sum(y.sum() for y in packed_linear.packed_linear(draw(6, 4), weights)).backward()
    kept = weights[1].grad.clone()
    weights[0].grad.mul_(3)
    nn.utils.clip_grad_norm_([weights[0]], 1e-3)
    assert torch.equal(weights[1].grad, kept)
    assert all(each.grad.is_contiguous() for each in weights)


@pytest.mark.parametrize("adjoined", [False, True])
def test_packed_linear_cannot_be_differentiated_twice(
    every_path: pytest.MonkeyPatch, adjoined: bool
) -> None:
    every_path.setattr(packed_linear, "_one_product", lambda *_: adjoined)
    x = draw(6, 4).requires_grad_()
    first, _ = packed_linear.packed_linear(x, parts((3, 5), 4, dtype=torch.float64))
    (grad,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_packed_linear_under_autocast_and_compile(every_path: pytest.MonkeyPatch) -> None:
    inputs = [draw(6, 4).float(), *parts((3, 5), 4, dtype=torch.float32)]
    with torch.autocast("cpu"):
        found = packed_linear.packed_linear(inputs[0], inputs[1:])
    assert all(y.dtype == torch.bfloat16 for y in found)
    compiled = torch.compile(packed_linear.packed_linear, fullgraph=True, backend="eager")
    assert [y.shape for y in compiled(inputs[0], inputs[1:])] == [(6, 3), (6, 5)]


class Two(nn.Module):
    """Two linears of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        linears = (self.one, self.other)
        return packed_linear.packed_linear(
            x, [m.weight for m in linears], [m.bias for m in linears]
        )

    def adjoin(self) -> Two:
        packed_linear.adjoin([self.one.weight, self.other.weight])
        packed_linear.adjoin([self.one.bias, self.other.bias])
        return self


def two() -> Two:
    torch.manual_seed(0)
    return Two()


def test_adjoin_keeps_parameters(tmp_path: Any) -> None:
    model = two()
    model.one.weight.requires_grad_(False)
    before, saved = list(model.parameters()), copy.deepcopy(model.state_dict())
    model.adjoin()
    assert packed_linear.adjacent([model.one.weight, model.other.weight])
    assert all(x is y for x, y in zip(model.parameters(), before, strict=True))
    assert not model.one.weight.requires_grad and model.other.weight.requires_grad
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in saved)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], saved[name]) for name in saved)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.one.weight.zero_()
    assert torch.equal(model.one.weight, saved["one.weight"])
    assert torch.equal(clone.other.weight, saved["other.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_adjoined_parameters_load(every_path: pytest.MonkeyPatch, assign: bool) -> None:
    model, stored = two().adjoin(), {k: v + 1 for k, v in two().state_dict().items()}
    model.load_state_dict(stored, assign=assign)
    weights = [model.one.weight, model.other.weight]
    assert packed_linear.adjacent(weights) == (not assign)
    x = draw(6, 4).float()
    truth = nn.functional.linear(x, stored["one.weight"], stored["one.bias"])
    torch.testing.assert_close(model(x)[0], truth)


@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_adjoined_parameters_are_trained(
    every_path: pytest.MonkeyPatch, optimizer: Any, how: dict[str, bool]
) -> None:
    models = [two(), two().adjoin()]
    for model, forward in ((models[0], None), (models[1], models[1])):
        steps = optimizer(model.parameters(), lr=0.1, **how)
        for step in range(3):
            x = draw(6, 4, seed=step).float()
            ys = forward(x) if forward else (model.one(x), model.other(x))
            steps.zero_grad()
            sum(y.square().sum() for y in ys).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)


def test_adjoin_refuses_what_cannot_lie_together() -> None:
    one = nn.Parameter(torch.zeros(2, 3))
    for other, text in (
        (one, "one stands twice"),
        (nn.Parameter(torch.zeros(2, 4)), r"shapes \[2, 3\] and \[2, 4\]"),
        (nn.Parameter(torch.zeros(2, 3).double()), "torch.float32 on cpu and torch.float64 on cpu"),
        (nn.Parameter(torch.zeros(2, 3, device="meta")), "Parameter on meta"),
    ):
        with pytest.raises(ValueError, match=text):
            packed_linear.adjoin([one, other])


# The loss


def reference_loss(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    logits = nn.functional.linear(x, weight, bias)
    return cross_entropy(logits, labels, smoothing=smoothing)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 5 * 11 * 4)  # five rows, or two and a half


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("shape", "left_out"), [((3, 7), 4), ((3, 7), 0), ((2,), 2), ((0,), 0)])
@pytest.mark.parametrize("fixed", [(), (0,), (2,)])
def test_loss(
    small_chunks: None,
    dtype: torch.dtype,
    smoothing: float,
    with_bias: bool,
    shape: tuple[int, ...],
    left_out: int,
    fixed: tuple[int, ...],
) -> None:
    labels = torch.arange(torch.Size(shape).numel()).mul(3).remainder(11).view(shape)
    labels.view(-1)[:left_out] = -100
    inputs = [draw(*shape, 6, dtype=dtype), labels, draw(11, 6, dtype=dtype)]
    check(
        lambda *x: linear_cross_entropy(*x, smoothing=smoothing),
        lambda *x: reference_loss(*x, smoothing=smoothing),
        [*inputs, draw(11, dtype=dtype)] if with_bias else inputs,
        fixed,
    )


def test_the_logits_never_exist() -> None:
    x, weight = (draw(n, 4).float().requires_grad_() for n in (3000, 30_000))
    labels = torch.zeros(3000, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(x, labels, weight, smoothing=0.0)[0].backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 1.01 * loss_module.CHUNK_BYTES["cpu"] < 3000 * 30_000 * 4 / 5


def test_the_loss_shares_its_weight_with_an_embedding(small_chunks: None) -> None:
    table, words = draw(11, 6), torch.arange(9)

    def tied(compute: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda w: compute(w[words].tanh(), words, w, smoothing=0.0)[0]

    check(tied(linear_cross_entropy), tied(reference_loss), [table])


def test_the_loss_where_tokens_are_not_left_out(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on other devices than the CPU."""
    monkeypatch.setattr(loss_module, "_kept", lambda _: None)
    labels = torch.arange(9) % 11
    labels[2:5] = -100
    check(
        lambda *x: linear_cross_entropy(*x, smoothing=0.1),
        lambda *x: reference_loss(*x, smoothing=0.1),
        [draw(9, 6), labels, draw(11, 6), draw(11)],
    )


def test_the_loss_is_a_well_formed_operator(small_chunks: None) -> None:
    x, weight, bias = (draw(*s).requires_grad_() for s in ((7, 6), (11, 6), (11,)))
    labels = torch.arange(7)
    operator = loss_module._linear_cross_entropy
    torch.library.opcheck(operator, (x, labels, weight, bias, 0.1, True, True, True))
    fixed = weight.detach()
    torch.library.opcheck(operator, (x, labels, fixed, None, 0.0, True, False, False))


def test_the_loss_cannot_be_differentiated_twice() -> None:
    x = draw(7, 6).requires_grad_()
    loss, _ = linear_cross_entropy(x, torch.arange(7), draw(11, 6), smoothing=0.0)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_the_loss_under_autocast() -> None:
    x, weight = draw(7, 6).float().requires_grad_(), draw(11, 6).float()
    with torch.autocast("cpu"):
        loss, _ = linear_cross_entropy(x, torch.arange(7), weight, smoothing=0.0)
        other, _ = reference_loss(x, torch.arange(7), weight, smoothing=0.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, other, atol=1e-2, rtol=1e-2)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == torch.float32


def test_the_loss_leaves_small_logits_to_the_decomposition() -> None:
    refuses = kernels()["linear_cross_entropy"].refuses
    x, weight = draw(7, 6), draw(11, 6)
    found = refuses(x, torch.arange(7), weight, smoothing=0.0)
    assert found == "the logits are small: 616 bytes"
    many = torch.zeros(1 << 18, dtype=torch.int64)
    assert refuses(x.expand(1 << 15, 8, 7, 6)[:, :, 0], many, weight, smoothing=0.0) is None


# Heads

NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


@pytest.fixture(params=["C", "torch"])
def engine(request: pytest.FixtureRequest) -> Any:
    """Both ways to compute what has a C kernel."""
    if request.param == "torch":
        with native.disabled():
            yield request.param
        return
    reason = native.refused("rotate_heads") or native.refused("norms")
    if reason:
        pytest.skip(reason)
    yield request.param


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["", "rms_norm", "layer_norm"])
@pytest.mark.parametrize("pairs", ["half", "adjacent"])
@pytest.mark.parametrize("turned", [0, 2, 16])
@pytest.mark.parametrize(("batch", "length", "heads", "width"), [(2, 5, 3, 33), (1, 3, 2, 32)])
def test_rotate_heads(
    engine: str,
    dtype: torch.dtype,
    norm: str,
    pairs: str,
    turned: int,
    batch: int,
    length: int,
    heads: int,
    width: int,
) -> None:
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


def test_rotate_heads_refuses_tables_with_gradients() -> None:
    x, cos, sin = draw(2, 3, 8), *angles(1, 3, 2, torch.float64)
    attributes = {"heads": 2, "norm": "", "eps": 0.0, "pairs": "half"}
    refuses = kernels()["rotate_heads"].refuses
    assert refuses(x, cos, sin, **attributes) is None
    assert refuses(x, cos.requires_grad_(), sin, **attributes) == "cos and sin have gradients"


# Norms


def reference_norms(x: Tensor, *affine: Tensor, norm: str) -> tuple:
    """One result for each weight; the biases come behind the weights."""
    count = len(affine) // 2
    pairs = zip(affine[:count], affine[count:], strict=True)
    return tuple(NORMS[norm](x, *pair, eps=1e-5) for pair in pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 33), (70, 17), (7,), (0, 8), (1, 256)])
@pytest.mark.parametrize("fixed", [(), (0,), (1,), (2,), (0, 1)])
def test_rms_norm(
    engine: str, dtype: torch.dtype, shape: tuple[int, ...], fixed: tuple[int, ...]
) -> None:
    affine = [draw(shape[-1], dtype=dtype, seed=s) for s in (1, 2)]
    inputs = [draw(*shape, dtype=dtype), *affine]
    check(lambda *x: fused_rms_norm(*x, eps=1e-5), lambda *x: rms_norm(*x, eps=1e-5), inputs, fixed)
    check(
        lambda x: fused_rms_norm(x, eps=1e-5), lambda x: rms_norm(x, eps=1e-5), [inputs[0].double()]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("shape", [(2, 5, 33), (70, 17), (0, 8)])
@pytest.mark.parametrize("fixed", [(), (0,), (1, 4), (2,), (1, 2, 3, 4)])
def test_norm_pair(
    engine: str, dtype: torch.dtype, norm: str, shape: tuple[int, ...], fixed: tuple[int, ...]
) -> None:
    affine = [draw(shape[-1], dtype=dtype, seed=s) for s in range(1, 5)]
    check(
        lambda x, *a: norm_pair(x, a[:2], a[2:], norm=norm, eps=1e-5),
        lambda x, *a: reference_norms(x, *a, norm=norm),
        [draw(*shape, dtype=dtype), *affine],
        fixed,
    )


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_norm_pair_of_which_one_is_read(engine: str, norm: str) -> None:
    inputs = [draw(6, 9), *(draw(9, seed=s) for s in range(1, 5))]
    check(
        lambda x, *a: norm_pair(x, a[:2], a[2:], norm=norm, eps=1e-5)[1],
        lambda x, *a: reference_norms(x, *a, norm=norm)[1],
        inputs,
        fixed=(1, 3),
    )


def test_norm_pair_without_biases(engine: str) -> None:
    check(
        lambda x, *w: norm_pair(x, w, norm="rms_norm", eps=1e-5),
        lambda x, *w: tuple(rms_norm(x, each, eps=1e-5) for each in w),
        [draw(6, 9), draw(9), draw(9, seed=1)],
    )


def test_norms_on_several_threads_and_of_views(engine: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inputs = [draw(64, 4 * ELEMENTS_PER_THREAD // 64).t(), draw(64)]
        check(lambda *x: fused_rms_norm(*x, eps=1e-5), lambda *x: rms_norm(*x, eps=1e-5), inputs)
    finally:
        torch.set_num_threads(threads)


def test_norms_refuse_what_torch_does_as_well() -> None:
    refuses = kernels()["rms_norm"].refuses
    many = draw(1 << 15)
    assert refuses(many[:7], eps=0.0) == "x is small: 7 numbers"
    assert refuses(many.half(), eps=0.0) == "x is torch.float16"
    with native.disabled():
        assert refuses(many, eps=0.0) == "C kernels are switched off"


def test_every_kernel_is_registered() -> None:
    mine = {"attention", "packed_linear", "linear_cross_entropy", "rotate_heads"}
    assert mine | {"rms_norm", "norm_pair"} <= set(kernels())
