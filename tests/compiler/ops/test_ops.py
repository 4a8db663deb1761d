"""Every op of the registry against its own record; the ops that matter against something else.

An op is tested by existing: the generic tests list the registry.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from op_samples import (
    OPS,
    double,
    floats,
    replaced,
    run,
    tensors,
    types_of,
    values_of,
)
from torch.nn import functional as F

import multiway.ops as mw_ops
from multiway.compiler.graph.op import Op, Reject, Sample
from multiway.compiler.graph.registry import call as call_of_ops
from multiway.compiler.graph.signature import ShapeError
from multiway.compiler.graph.types import History, Sizes, Tensor, Type

SAMPLES = [
    pytest.param(op, sample, id=f"{op.name}-{i}")
    for op in OPS.values()
    for i, sample in enumerate(op.samples)
]
REJECTS = [
    pytest.param(op, reject, id=f"{op.name}-{i}")
    for op in OPS.values()
    for i, reject in enumerate(op.rejects)
]
# What is at least float32 whatever comes in: losses, and angles that grow with the position.
WIDE = {
    "binary_cross_entropy",
    "contrastive_loss",
    "cross_entropy",
    "linear_cross_entropy",
    "rotary_table",
    "router_statistics",
}


def assert_of_type(value: Any, kind: Type) -> None:
    match kind:
        case Sizes(dims):
            assert tuple(value) == dims
        case History(length, shape):
            assert len(value) == length
            assert all(tuple(each.shape) == shape for each in value)
        case Tensor(shape, dtype):
            assert tuple(value.shape) == shape
            kinds = {torch.bool: "bool", torch.int64: "int", double: "float"}
            assert kinds[value.dtype] == dtype


# Every op


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_the_record_is_complete(op: Op) -> None:
    assert op.doc.endswith(".")
    assert op.samples
    assert op.rejects or op.signature.startswith("x[*] ->")  # which takes anything
    assert op.reference.__doc__ is None, "the doc of an op stands in its record"
    parameters = inspect.signature(op.reference).parameters
    inputs = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    attrs = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert inputs == [slot.name for slot in op.parsed.inputs]
    assert attrs == list(op.attrs)
    for name, attr in op.attrs.items():
        assert attr.doc, f"{op.name}.{name} has no doc"
    for slot in op.parsed.inputs:
        optional = parameters[slot.name].default is None
        assert optional or not slot.optional, f"{slot.name} may be left out, but has no default"
    assert set(op.params) <= set(inputs)
    bound = {attr.letter for attr in op.attrs.values() if attr.letter}
    assert all(len(letter) == 1 for letter in bound)


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_outputs_are_what_the_signature_infers(op: Op, sample: Sample) -> None:
    inferred = op.types(types_of(op, sample.shapes), op.full_attrs(sample.attrs))
    outputs = run(op, sample, values_of(op, sample))
    assert len(outputs) == len(inferred)
    for value, kind in zip(outputs, inferred, strict=True):
        assert_of_type(value, kind)
        assert all(torch.isfinite(t).all() for t in floats(value))


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_gradients_are_those_of_the_formula(op: Op, sample: Sample) -> None:
    values = values_of(op, sample)
    leaves = floats(values)
    outputs = floats(run(op, sample, values))
    if not leaves or not outputs or not depends_on_values(op, sample):
        return

    for leaf in leaves:
        leaf.requires_grad_()
    learned = [each.requires_grad for each in floats(run(op, sample, values))]
    assert any(learned)

    def function(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = floats(run(op, sample, replaced(values, list(given))))
        return tuple(itertools.compress(found, learned))

    # By random directions: all entries one by one take five times as long.
    assert torch.autograd.gradcheck(function, tuple(leaves), fast_mode=True)


def depends_on_values(op: Op, sample: Sample) -> bool:
    """Whether other floats of the same shapes give other outputs."""
    first, second = (values_of(op, sample, seed=seed) for seed in (0, 1))
    fixed = {n: v for n, v in first.items() if not floats(v)}
    outputs = [floats(run(op, sample, values | fixed)) for values in (first, second)]
    return any(not torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_narrow_floats_stay_narrow_and_near(op: Op, sample: Sample) -> None:
    values = values_of(op, sample, dtype=torch.bfloat16)
    wide = {name: promoted(value) for name, value in values.items()}
    narrow, exact = (floats(run(op, sample, given)) for given in (values, wide))
    for got, want in zip(narrow, exact, strict=True):
        assert got.dtype == (torch.float32 if op.name in WIDE else torch.bfloat16)
        assert want.dtype == double
        torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05)


def promoted(value: Any) -> Any:
    if isinstance(value, list):
        return [promoted(each) for each in value]
    narrow = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if narrow else value


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_flops_are_no_less_than_none(op: Op, sample: Sample) -> None:
    letters = {}
    for letter, value in op.sizes(types_of(op, sample.shapes), op.full_attrs(sample.attrs)).items():
        if letter == "*":
            letters[letter] = math.prod(value)
        elif isinstance(value, int):
            letters[letter] = value
    assert op.flops(letters) >= 0


@pytest.mark.parametrize(("op", "reject"), REJECTS)
def test_rejects_are_refused_with_their_text(op: Op, reject: Reject) -> None:
    with pytest.raises(ShapeError) as caught:
        op.types(types_of(op, reject.shapes), op.full_attrs(reject.attrs))
    assert str(caught.value) == reject.error


def test_no_op_changes_what_it_is_given() -> None:
    for op in OPS.values():
        for sample in op.samples:
            values = values_of(op, sample)
            before = [t.clone() for t in tensors(values)]
            run(op, sample, values)
            after = tensors(values)
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), op.name


# Single ops against something independent


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=double)


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    return OPS[name].reference(*args, **kwargs)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_layer_norm_is_that_of_torch() -> None:
    x, module = 3 + random(2, 3, 8), torch.nn.LayerNorm(8, eps=1e-3, dtype=double)
    with torch.no_grad():
        module.weight.copy_(random(8))
        module.bias.copy_(random(8, seed=1))
    close(call("layer_norm", x, module.weight, module.bias, eps=1e-3), module(x))
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    close(call("layer_norm", x, eps=1e-3), (x - mean) / (variance + 1e-3).sqrt())


def test_rms_norm_is_that_of_torch() -> None:
    x, module = 3 + random(2, 3, 8), torch.nn.RMSNorm(8, eps=1e-3, dtype=double)
    with torch.no_grad():
        module.weight.copy_(random(8))
    close(call("rms_norm", x, module.weight, eps=1e-3), module(x))
    bias = random(8, seed=2)
    close(call("rms_norm", x, module.weight, bias, eps=1e-3), module(x) + bias)


def test_rms_norm_is_computed_in_float32_and_weighed_in_the_type_of_x() -> None:
    x, weight = random(3, 8).bfloat16(), random(8).bfloat16()
    wide = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-3).sqrt()
    assert torch.equal(call("rms_norm", x, weight, eps=1e-3), wide.bfloat16() * weight)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(causal: bool, kv_heads: int, masked: bool) -> None:
    query, key, value = random(2, 4, 5, 6), random(2, kv_heads, 5, 6), random(2, kv_heads, 5, 6)
    mask = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    mask |= torch.eye(5, dtype=torch.bool)  # every query sees something
    seen = torch.ones(5, 5, dtype=torch.bool).tril() if causal else torch.ones(5, 5) > 0
    want = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen & mask if masked else seen, enable_gqa=True
    )
    got = call("attention", query, key, value, mask if masked else None, causal=causal)
    close(got, want)


def test_attention_of_a_longer_key_sequence_and_a_row_mask() -> None:
    query, key, value = random(2, 2, 3, 4), random(2, 2, 7, 4), random(2, 2, 7, 5)[..., :4]
    mask = torch.arange(7)[None, None, None] < torch.tensor([4, 7])[:, None, None, None]
    got = call("attention", query, key, value, mask, causal=False)
    close(got[0], call("attention", query[:1], key[:1, :, :4], value[:1, :, :4], causal=False)[0])
    close(got[1], call("attention", query[1:], key[1:], value[1:], causal=False)[0])


@pytest.mark.parametrize("pairs", ["half", "adjacent"])
def test_rotary_turns_pairs_as_complex_numbers(pairs: str) -> None:
    x, positions = random(2, 3, 5, 10), torch.tensor([[0, 1, 2, 3, 4], [7, 5, 3, 2, 0]])
    cos, sin = call("rotary_table", random(2, 5, 8), positions, channels=8, base=100.0)
    got = call("rotary", x, cos, sin, pairs=pairs)
    want = x.clone()
    for j in range(4):
        a, b = (j, j + 4) if pairs == "half" else (2 * j, 2 * j + 1)
        angle = positions.double() * 100.0 ** (-2 * j / 8)
        turned = (
            torch.complex(x[..., a], x[..., b])
            * torch.polar(torch.ones_like(angle), angle)[:, None]
        )
        want[..., a], want[..., b] = turned.real, turned.imag
    close(got, want)
    assert torch.equal(got[..., 8:], x[..., 8:])


def test_rotary_scores_depend_on_the_distance_only() -> None:
    query, key = random(1, 1, 6, 8), random(1, 1, 6, 8, seed=1)
    scores = []
    for start in (0, 11):
        positions = torch.arange(start, start + 6)[None]
        table = call("rotary_table", random(1, 6, 8), positions, channels=8, base=10000.0)
        q, k = (call("rotary", x, *table, pairs="half") for x in (query, key))
        scores.append(q @ k.transpose(-1, -2))
    close(*scores)


def test_angles_of_narrow_models_are_as_good_as_float32() -> None:
    positions = torch.arange(2000)[None]
    cos, _ = call("rotary_table", random(1, 1, 1).bfloat16(), positions, channels=2, base=10.0)
    assert cos.dtype == torch.float32
    torch.testing.assert_close(
        cos[0, :, 0].double(), positions[0].double().cos(), atol=1e-6, rtol=0
    )


def test_mix_is_an_einsum_over_sources() -> None:
    history, weights = [random(2, 3, 4, seed=i) for i in range(5)], random(2, 3, 4, 5)
    ways = call("mix", history, weights)
    want = torch.einsum("btcl,lbtd->cbtd", weights, torch.stack(history))
    close(torch.stack(ways), want)
    static = random(4, 5)
    want = torch.einsum("cl,lbtd->cbtd", static, torch.stack(history))
    close(torch.stack(call("mix", history, static)), want)


def test_dynamic_mixing_weights_are_way_major() -> None:
    dynamic, static = random(2, 3, 8), random(2, 4)
    weights = call("depth_weights", dynamic, static, ways=2)
    for way in range(2):
        for source in range(4):
            want = dynamic[..., 4 * way + source] + static[way, source]
            assert torch.equal(weights[..., way, source], want)
    assert call("depth_weights", None, static, ways=2) is static


def test_cross_entropy_is_that_of_torch() -> None:
    logits = random(2, 5, 7)
    labels = torch.tensor([[0, 6, -100, 3, 2], [-100, -100, 1, 1, 5]])
    loss, count = call("cross_entropy", logits, labels, smoothing=0.0)
    close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert int(count) == 7
    close(call("cross_entropy", logits[:, 0], labels[:, 1].abs().clamp(max=6), smoothing=0.0)[0],
          F.cross_entropy(logits[:, 0], labels[:, 1].abs().clamp(max=6)))  # fmt: skip


def test_cross_entropy_of_nothing_is_zero() -> None:
    logits = random(2, 3, 4).requires_grad_()
    loss, count = call("cross_entropy", logits, torch.full((2, 3), -100), smoothing=0.0)
    assert (float(loss.detach()), int(count)) == (0.0, 0)
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_smoothed_cross_entropy_is_a_kl_divergence() -> None:
    logits, labels, smoothing = random(6, 5), torch.tensor([0, 4, 2, -100, 1, -100]), 0.1
    target = torch.full((6, 5), smoothing / 4, dtype=double)
    counted = labels >= 0
    target[counted] = target[counted].scatter(1, labels[counted, None], 1 - smoothing)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")
    want = divergence(logits.log_softmax(-1)[counted], target[counted])
    loss, count = call("cross_entropy", logits, labels, smoothing=smoothing)
    close(loss, want)
    assert int(count) == 4


def test_binary_cross_entropy_is_a_mean_or_a_sum_over_classes() -> None:
    logits, labels = random(3, 5), torch.rand(3, 5, dtype=double)
    p = logits.sigmoid()
    each = -(labels * p.log() + (1 - labels) * (1 - p).log())
    close(call("binary_cross_entropy", logits, labels, times_classes=False), each.mean())
    close(call("binary_cross_entropy", logits, labels, times_classes=True), each.sum(1).mean())


def test_contrastive_loss_matches_pairs_both_ways() -> None:
    a, b, scale = random(4, 6), random(4, 6, seed=1), torch.tensor(0.7, dtype=double)
    scores = call("similarity", a, b, scale)
    loops = [[math.exp(0.7) * float(x @ y) for y in b] for x in a]
    close(scores, torch.tensor(loops, dtype=double))
    rows = sum(-scores[i, i] + scores[i].logsumexp(0) for i in range(4)) / 4
    columns = sum(-scores[i, i] + scores[:, i].logsumexp(0) for i in range(4)) / 4
    close(call("contrastive_loss", scores), (rows + columns) / 2)


def test_patches_are_cut_row_by_row_and_projected() -> None:
    image, weight, bias = random(2, 3, 8, 8), random(5, 3, 4, 4), random(5)
    unfolded = F.unfold(image, 4, stride=4).transpose(1, 2)
    close(call("patch_embed", image, weight, bias), unfolded @ weight.flatten(1).T + bias)
    second = image[:, :, :4, 4:]  # the second patch is to the right of the first
    close(call("patch_embed", image, weight)[:, 1], torch.einsum("bcij,dcij->bd", second, weight))


def test_the_prefix_sees_itself_and_the_text_sees_what_is_before() -> None:
    sizes = [2, 3, 4]
    mask = call("prefix_mask", random(1, 9, 2), sizes)
    for query in range(9):
        for key in range(9):
            prefix = key < 5
            assert bool(mask[0, 0, query, key]) == (prefix or (query >= 5 and key <= query))


def test_a_cache_is_written_at_the_slots_of_each_row() -> None:
    cache, new, slots = random(2, 3, 6, 4), random(2, 3, 2, 4), torch.tensor([[0, 1], [3, 5]])
    got = call("cache_write", cache, new, slots)
    want = cache.clone()
    for row in range(2):
        for i in range(2):
            want[row, :, slots[row, i]] = new[row, :, i]
    assert torch.equal(got, want)
    shared = call("cache_write", cache, new, slots[:1])
    assert torch.equal(shared[1, :, :2], new[1])


def test_a_cache_is_seen_up_to_the_token_itself() -> None:
    slots = torch.tensor([[0, 1], [3, 4]])
    mask = call("cache_mask", slots, random(2, 3, 6, 4))
    for row in range(2):
        for i in range(2):
            for slot in range(6):
                assert bool(mask[row, 0, i, slot]) == (slot <= slots[row, i])


def test_slots_count_from_the_offset_of_a_row() -> None:
    offset, positions = torch.tensor([4, 7]), torch.tensor([[0, 2]])
    assert call("cache_slots", offset, positions).tolist() == [[4, 6], [7, 9]]
    assert call("shift_offset", offset, [3, 2, 5]).tolist() == [9, 12]


def test_means_leave_out_padding_and_the_first_tokens() -> None:
    x, padding = random(2, 5, 3), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    got = call("mean_tokens", x, padding, skip=1)
    close(got, torch.stack([x[0, 1:3].mean(0), x[1, 1:].mean(0)]))
    close(call("mean_tokens", x, skip=2), x[:, 2:].mean(1))


def test_heads_own_neighbouring_channels() -> None:
    x = random(2, 3, 8)
    split = call("split_heads", x, heads=4)
    for head in range(4):
        assert torch.equal(split[:, head], x[..., 2 * head : 2 * head + 2])
    assert torch.equal(call("merge_heads", split), x)


def test_learned_positions_count_from_the_offset() -> None:
    x, table = random(2, 3, 4), random(9, 4)
    got = call("add_position", x, torch.tensor([[0, 2, 1], [3, 4, 6]]), table, offset=2)
    close(got[0], x[0] + table[[2, 4, 3]])
    close(got[1], x[1] + table[[5, 6, 8]])


def test_activations_are_their_formulas() -> None:
    x = random(100)
    formulas = {
        "gelu": x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "silu": x / (1 + (-x).exp()),
        "relu": x * (x > 0),
        "relu_squared": (x * (x > 0)) ** 2,
        "tanh": (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        "sigmoid": 1 / (1 + (-x).exp()),
    }
    for kind, want in formulas.items():
        close(call("activation", x, kind=kind), want)


def test_calls_have_the_ops_and_nothing_else() -> None:
    assert callable(call_of_ops.linear)
    assert not hasattr(call_of_ops, "lineer")
    with pytest.raises(AttributeError, match="there is no op 'lineer'; the nearest is 'linear'"):
        _ = call_of_ops.lineer
    assert copy.copy(call_of_ops).linear is call_of_ops.linear


@pytest.mark.parametrize("name", OPS)
def test_a_reference_stays_where_it_is_written(name: str) -> None:
    """And has a second name in multiway.ops, by which lowered code calls it and pickle finds it."""
    op, folder = OPS[name], "fusions" if OPS[name].composed else "ops"
    assert op.reference.__module__ == f"multiway.compiler.{folder}.{name}"
    public = getattr(mw_ops, name)
    assert public.__module__ == "multiway.ops" and public.__code__ is op.reference.__code__
    assert inspect.signature(public) == inspect.signature(op.reference)
    for function in (public, op.reference):
        assert pickle.loads(pickle.dumps(function)) is function
