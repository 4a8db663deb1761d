"""The measuring itself, on callables whose counts and bytes are known. No time is asserted."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import multiway as mw
from multiway.runtime.measure.allocator import keep_memory
from multiway.runtime.measure.floor import Floor
from multiway.runtime.measure.machine import commit, machine, versions
from multiway.runtime.measure.neox import differences, neox_settings, neox_side
from multiway.runtime.measure.sides import (
    Work,
    floor_side,
    measure_sides,
    model_side,
    program_for,
    record,
    sample_inputs,
    tokens_in,
)
from multiway.runtime.measure.times import Times, gemm_floor, highest, interleave, peak_live_bytes

# Times


def test_times_have_a_median_a_spread_and_two_ratios() -> None:
    a, b = Times(seconds=(1.0, 2.0, 3.0, 4.0, 10.0)), Times(seconds=(1.0, 1.0, 2.0, 1.0, 4.0))
    assert (a.median, b.median) == (3.0, 1.0)
    assert a.spread == (4.0 - 2.0) / 3.0
    assert a.ratio(b) == 3.0
    assert a.paired_ratio(b) == 2.0, "the median of 1, 2, 1.5, 4, 2.5"


def test_runs_alternate_and_warm_up_runs_are_not_counted() -> None:
    order, now = [], 0.0

    def run(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            order.append(name)
            now += seconds if len(order) > 4 else 100.0
            assert not gc.isenabled()

        return call

    rounds: list[int] = []
    found = interleave(
        {"a": run("a", 1.0), "b": run("b", 2.0)},
        pairs=9,
        warmup=2,
        after=lambda: rounds.append(len(order)),
        clock=lambda: now,
    )
    assert order == ["a", "b"] * 11
    assert rounds == list(range(2, 23, 2))
    assert found == {"a": Times(seconds=(1.0,) * 9), "b": Times(seconds=(2.0,) * 9)}
    assert gc.isenabled()


def test_the_garbage_collector_is_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        interleave({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_few_pairs_are_refused() -> None:
    with pytest.raises(AssertionError, match="8 pairs are too few"):
        interleave({"a": lambda: None}, pairs=8)


# Memory


@pytest.mark.parametrize(
    ("changes", "peak"),
    [
        ([], 0),
        ([(1, 10), (2, 5), (1, -10), (3, 9)], 15),
        ([(1, 10), (1, -10), (1, 12)], 12),  # an address used again
        ([(7, -100), (1, 10)], 10),  # what was there before is not subtracted
        ([(1, 10), (2, 4), (2, -4), (2, 6)], 16),
    ],
)
def test_the_peak_of_allocations_and_releases(changes: list[tuple[int, int]], peak: int) -> None:
    assert highest(changes) == peak


def test_peak_live_bytes_of_a_case_by_hand() -> None:
    def run() -> torch.Tensor:
        a = torch.empty(1000)
        b = torch.empty(500)  # 6000 bytes
        del a
        c = torch.empty(900)  # 5600
        del b, c
        return torch.empty(1450)  # 5800

    assert peak_live_bytes(run) == 6000


def test_peak_live_bytes_counts_gradients_and_what_is_saved_for_them() -> None:
    x, weight = torch.ones(64, 64), torch.ones(64, 64, requires_grad=True)
    square = 64 * 64 * 4

    def run() -> None:
        weight.grad = None
        loss = (x @ weight).sin().sum()  # the product is saved, its sine is gone
        loss.backward()

    # In the backward: the product, the gradient of the sine, and the gradient of the product or
    # that of the weight beside it. A sum's gradient is a scalar that is expanded.
    small = 64
    assert 3 * square <= peak_live_bytes(run) <= 3 * square + small
    assert 3 * square <= peak_live_bytes(run) <= 3 * square + small, "old gradients do not matter"


def test_peak_live_bytes_does_not_depend_on_earlier_measurements() -> None:
    held: list[torch.Tensor] = []

    def run() -> None:
        held.clear()
        held.append(torch.empty(1000))

    assert [peak_live_bytes(run) for _ in range(3)] == [4000] * 3


# The floor


def shapes(floor: Floor) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [(call.name, [each.shape for each in call.operands]) for call in floor.calls]


def test_a_linear_is_three_products_in_training() -> None:
    x = torch.ones(2, 3, 4, requires_grad=True)
    weight = torch.ones(5, 4, requires_grad=True)

    floor = gemm_floor(lambda: F.gelu(F.linear(x, weight)).sum().backward())
    assert shapes(floor)[0] == ("mm", [(6, 4), (4, 5)])
    assert sorted(shapes(floor)[1:]) == [("mm", [(5, 6), (6, 4)]), ("mm", [(6, 5), (5, 4)])]
    assert floor.flops == 3 * 2 * 6 * 4 * 5
    transposed = floor.calls[0].operands[1]
    assert transposed.stride == (1, 4), "the layout of a transposed weight is kept"


@pytest.mark.parametrize(
    ("run", "counts", "flops"),
    [
        (lambda: torch.ones(3, 4) + 1, {}, 0),
        (lambda: torch.ones(3, 4) @ torch.ones(4), {"mv": 1}, 2 * 3 * 4),
        (lambda: torch.ones(2, 3, 4) @ torch.ones(2, 4, 5), {"bmm": 1}, 2 * 2 * 3 * 4 * 5),
        (
            lambda: torch.mm(torch.ones(2, 3), torch.ones(3, 5), out=torch.empty(2, 5)),
            {"mm": 1},
            2 * 2 * 3 * 5,
        ),
        (
            lambda: torch.zeros(2, 5).addmm_(torch.ones(2, 3), torch.ones(3, 5)),
            {"addmm_": 1},
            2 * 2 * 3 * 5,
        ),
        (
            lambda: F.conv2d(torch.ones(2, 3, 8, 8), torch.ones(5, 3, 4, 4), stride=4),
            {"convolution": 1},
            2 * 2 * 4 * 5 * 48,
        ),
        (
            lambda: torch.einsum("bij,bjk->bik", torch.ones(2, 3, 4), torch.ones(2, 4, 5)),
            {"bmm": 1},
            2 * 2 * 3 * 4 * 5,
        ),
    ],
)
def test_products_are_found_however_they_are_written(
    run: Callable[[], Any], counts: dict[str, int], flops: int
) -> None:
    floor = gemm_floor(run)
    assert floor.counts() == counts
    assert floor.flops == flops
    floor()


def test_attention_is_recorded_with_all_its_arguments() -> None:
    query = torch.randn(2, 4, 8, 16, requires_grad=True)
    key = torch.randn(2, 2, 8, 16, requires_grad=True)

    def run() -> None:
        y = F.scaled_dot_product_attention(
            query, key, key, is_causal=True, enable_gqa=True, scale=0.3
        )
        y.sum().backward()

    floor = gemm_floor(run)
    name = "_scaled_dot_product_flash_attention_for_cpu"
    assert floor.counts() == {name: 1, f"{name}_backward": 1}
    forward = floor.calls[0]
    assert [each.shape for each in forward.operands] == [(2, 4, 8, 16), *[(2, 2, 8, 16)] * 2]
    assert forward.args[3:] == (0.0, True)
    assert forward.kwargs == {"scale": 0.3}
    assert floor.flops == 4 * 2 * 4 * 8 * 8 * 16 * 3.5
    floor()


def test_a_mask_of_attention_is_an_operand_too() -> None:
    query, mask = torch.randn(2, 4, 8, 16), torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    with torch.inference_mode():
        floor = gemm_floor(lambda: F.scaled_dot_product_attention(query, query, query, mask))
    assert floor.calls[0].kwargs["attn_mask"].shape == (2, 1, 8, 8)
    assert not floor.calls[0].args[4:], "not causal"
    floor()


@pytest.fixture(scope="module")
def toys() -> Iterator[Any]:
    """Custom operators unknown to the recorder: one with products, and one that calls it."""
    library = torch.library.Library("multiway_toys", "FRAGMENT")

    @torch.library.custom_op("multiway_toys::product", mutates_args=())
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ weight)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs, output)

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, output = ctx.saved_tensors
        grad = grad * (output > 0)
        return grad @ weight.t(), x.t() @ grad

    product.register_autograd(backward, setup_context=keep)

    @torch.library.custom_op("multiway_toys::each", mutates_args=())
    def each(x: list[torch.Tensor], weight: torch.Tensor) -> list[torch.Tensor]:
        return [product(F.linear(one, weight), weight) for one in x]

    yield torch.ops.multiway_toys
    library._destroy()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_products_inside_custom_operators_are_seen(toys: Any, mode: Any) -> None:
    x, weight = torch.ones(2, 4), torch.ones(4, 4)
    with mode():
        floor = gemm_floor(lambda: toys.each([x, x[:1]], weight))
    assert sum(floor.counts().values()) == 4
    assert floor.flops == 2 * (2 * 4 * 4 + 1 * 4 * 4) * 2
    floor()


def test_products_in_the_backward_of_custom_operators_are_seen(toys: Any) -> None:
    x, weight = (torch.ones(s, requires_grad=True) for s in ((8, 4), (4, 16)))
    floor = gemm_floor(lambda: toys.product(x, weight).sum().backward())
    assert shapes(floor) == [
        ("mm", [(8, 4), (4, 16)]),
        ("mm", [(8, 16), (16, 4)]),
        ("mm", [(4, 8), (8, 16)]),
    ]
    floor()


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        (x,) = ctx.saved_tensors
        return None, x.t() @ grad


def test_products_inside_an_autograd_function_are_seen() -> None:
    x, weight = torch.ones(8, 4), torch.ones(4, 16, requires_grad=True)
    floor = gemm_floor(lambda: Product.apply(x, weight).sum().backward())
    assert shapes(floor) == [("mm", [(8, 4), (4, 16)]), ("mm", [(4, 8), (8, 16)])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_replay_makes_the_recorded_calls(dtype: torch.dtype) -> None:
    model = mw.compile("mudd-pythia-test", dtype=dtype, fuse=False)
    tokens = torch.zeros(2, 8, dtype=torch.int64)

    def run() -> None:
        model.run("loss", tokens=tokens, labels=tokens)[0].backward()

    floor = gemm_floor(run)
    again = gemm_floor(floor)
    assert len(floor.calls) > 50
    for a, b in zip(floor.calls, again.calls, strict=True):
        assert a.op is b.op
        assert a.flops == b.flops
        for one, other in zip(a.operands, b.operands, strict=True):
            layout = (one.shape, one.stride, one.dtype)
            assert layout == (other.shape, other.stride, other.dtype)


def buffers(floor: Floor, place: int) -> list[tuple[Any, ...]]:
    return [call.operands[place].buffer for call in floor.calls]


def test_as_many_buffers_as_the_cache_cannot_hold() -> None:
    x, weights = torch.ones(4, 8), [torch.ones(8, 8) for _ in range(5)]

    def run() -> None:
        for weight in (*weights, weights[0]):
            torch.mm(x, weight)

    found = buffers(gemm_floor(run), 1)
    assert len(set(found)) == 5
    assert found[0] == found[5], "the same weight is the same buffer"
    few = buffers(gemm_floor(run, cache_bytes=3 * 8 * 8 * 4), 1)
    assert len(set(few)) == 3
    assert all(a != b for a, b in itertools.pairwise(few[:5]))


def test_what_was_just_made_shares_a_buffer() -> None:
    x, weight = torch.ones(4, 8), torch.ones(8, 8)

    def run() -> None:
        y = x
        for _ in range(4):
            y = torch.mm(y, weight).relu()

    found = buffers(gemm_floor(run), 0)
    assert len(set(found[1:])) == 1
    assert found[0] != found[1]


def test_what_was_made_long_ago_is_cold() -> None:
    x, weight = torch.ones(4, 8), torch.ones(8, 8)

    def run() -> None:
        made = [x + i for i in range(4)]
        torch.ones(1000)
        for each in made:
            torch.mm(each, weight)

    assert len(set(buffers(gemm_floor(run), 0))) == 1
    assert len(set(buffers(gemm_floor(run, near_bytes=4000), 0))) == 4


# Sides


def test_inputs_have_the_sizes_that_were_asked_for() -> None:
    model = mw.compile("pythia-test", device="meta")
    found = sample_inputs(model, "loss", Work(batch=3, length=7))
    assert {name: list(x.shape) for name, x in found.items()} == {
        "tokens": [3, 7],
        "labels": [3, 7],
    }
    assert tokens_in(model, "loss", found) == 21
    default = sample_inputs(model, "forward", Work())
    assert list(default["tokens"].shape) == [1, 64], "its longest, which is less than 512"


def test_tokens_of_an_image_are_its_patches() -> None:
    model = mw.compile("beit3-test", head="features", device="meta")
    found = sample_inputs(model, "forward", Work(batch=2, length=5))
    assert not found["text_padding"].any()
    assert tokens_in(model, "forward", found) == 2 * (17 + 5)


@pytest.mark.parametrize("head", list(mw.load("beit3-test").heads))
def test_every_head_does_its_step(head: str) -> None:
    spec = mw.load("beit3-test").for_head(head)
    model = mw.compile(spec, device="meta")
    for train in (False, True) if "loss" in model.programs else (False,):
        work = Work(batch=2, length=4, train=train)
        side = model_side("it", lambda device: mw.compile(spec, device=device), work)
        side.run()
        assert side.program == ("loss" if train else next(iter(model.programs)))
        assert side.tokens > 0


def test_a_step_of_training_leaves_the_gradients_of_one_step() -> None:
    model = mw.compile("pythia-test")
    side = model_side("it", lambda device: model, Work(length=4, train=True))
    weight = model.get_parameter("heads.lm.weight")
    side.run()
    assert weight.grad is not None
    first = weight.grad.clone()
    side.run()
    assert torch.equal(weight.grad, first)


def test_errors_say_what_is_too_long_and_what_has_no_loss() -> None:
    model = mw.compile("pythia-test", device="meta")
    with pytest.raises(mw.MultiwayError) as error:
        sample_inputs(model, "loss", Work(length=65))
    assert error.value.render() == (
        "--length: error[too-long]: 'tokens' has positions for 64 tokens, not for 65\n"
        "  expected: at most 64"
    )
    with pytest.raises(mw.MultiwayError) as error:
        program_for(mw.compile("beit3-test", head="features", device="meta"), Work(train=True))
    assert error.value.render() == (
        "--train: error[unknown-program]: head 'features' has no loss to train\n"
        "  expected: a head with a program 'loss', or no --train"
    )


def test_sides_are_measured_beside_their_floor() -> None:
    side = model_side(
        "it", lambda device: mw.compile("pythia-test", device=device), Work(batch=2, length=4)
    )
    found = measure_sides([side, floor_side(side)], memory=True)
    plain = [record(each, found[0]) for each in found]
    assert [each["name"] for each in plain] == ["it", "gemm of it"]
    assert plain[0]["ratio"] == plain[0]["paired_ratio"] == 1.0
    assert plain[0]["peak_live_bytes"] > 2 * 4 * 256 * 4, "the logits at the least"
    assert plain[1]["peak_live_bytes"] is None
    # Two blocks of six linears each and the output; attention adds 4 B H T S E.
    linears = 2 * 8 * (2 * (4 * 64 * 64 + 2 * 64 * 256) + 64 * 256)
    assert plain[1]["gemm_flops"] == linears + 2 * 4 * 2 * 4 * 4 * 4 * 16


# transformers


def test_neox_has_the_parameters_of_the_spec() -> None:
    pytest.importorskip("transformers")
    spec = mw.load("pythia-test").for_head(None)
    model = mw.compile(spec, device="meta")
    for train in (False, True):
        work = Work(batch=2, length=8, train=train)
        side = neox_side(spec, work, dtype=torch.float32)
        assert side.parameters == sum(p.numel() for p in model.parameters())
        assert side.tokens == 16
        side.run()
        ours = gemm_floor(model_side("it", lambda d: mw.compile(spec, device=d), work).run)
        theirs = gemm_floor(side.run)
        # Its labels are moved, so the last position of every text has logits and no loss.
        assert theirs.flops == pytest.approx(ours.flops, rel=0.02)


def test_neox_takes_its_numbers_from_the_spec() -> None:
    assert neox_settings(mw.load("pythia-410m").for_head("lm")) == {
        "vocab_size": 50304,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-05,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"wiring.use": "mudd"}, "wiring mudd"),
        ({"block.order": "sequential"}, "sequential blocks"),
        ({"block.ffn.activation": "silu"}, "activation silu"),
        ({"block.ffn.gate": "true"}, "a gate"),
        ({"block.ffn.bias": "false"}, "projections without bias"),
        ({"block.ffn.hidden": "64 * (layer + 1)"}, "blocks that differ"),
        ({"block.attention.kv_heads": "2"}, "fewer key than query heads"),
        ({"block.attention.position.pairs": "adjacent"}, "no rotary positions in halves"),
        ({"block.attention.qk_norm.kind": "rms_norm"}, "norms of query and key"),
        ({"heads.lm.bias": "true"}, "a bias in its head"),
    ],
)
def test_what_is_no_neox_is_said(change: dict[str, str], text: str) -> None:
    assert differences(mw.load("pythia-test", set=change).for_head("lm")) == [text]


def test_other_families_are_no_neox() -> None:
    assert differences(mw.load("pythia-test").for_head("lm")) == []
    with pytest.raises(
        mw.MultiwayError, match="mudd-pythia-test is no plain GPT-NeoX: wiring mudd"
    ):
        neox_settings(mw.load("mudd-pythia-test").for_head("lm"))
    assert "routed parts" in differences(mw.load("beit3-test").for_head("features"))


# The machine and its allocator


def test_a_result_says_where_it_was_measured() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["threads"] == torch.get_num_threads()
    assert found["memory_bytes"] > 2**28
    assert versions(["no-such-package"])["no-such-package"] is None
    assert versions()["torch"] == torch.__version__


def test_the_commit_is_that_of_the_checkout_this_code_stands_in() -> None:
    root = Path(__file__).parents[3]
    assert commit() == commit(root)
    if (root / ".git").exists():
        assert commit() is not None


def test_a_folder_without_a_checkout_has_no_commit(tmp_path: Any) -> None:
    assert commit(tmp_path) is None


def test_a_checkout_is_changed_by_code_and_not_by_results(tmp_path: Any) -> None:
    def git(*arguments: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    folders = ("benchmarks/results", "docs", "runtime", "benchmarks")
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "file").write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    head = git("rev-parse", "HEAD")
    for folder, changed in zip(folders, (False, False, True, True), strict=True):
        for name in ("file", "new"):  # tracked or not
            (tmp_path / folder / name).write_text("after")
            assert commit(tmp_path) == {"id": head, "changed": changed}
            git("stash", "-q", "--include-untracked")


FAULTS = """
import resource, sys
import torch
from multiway.runtime.measure.allocator import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory() is keep_memory()
    assert keep_memory(), keep_memory().reason
def run():
    for size in (48, 12, 40):
        torch.empty(size * 2**18).fill_(1.0)
run(), run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_kept_memory_is_not_faulted_in_again() -> None:
    if not keep_memory():
        pytest.skip(keep_memory().reason)
    faults = {}
    for mode in ("plain", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        faults[mode] = int(done.stdout)
    assert faults["keep"] < faults["plain"] / 20


def test_the_settings_are_recorded() -> None:
    found = keep_memory().record()
    assert set(found) == {"library", "settings", "reason"}
    assert bool(keep_memory()) == bool(found["settings"])


def test_a_floor_has_nothing_that_is_made_once() -> None:
    counts = []
    for options in ({"mode": "train"}, {"mode": "inference"}):
        model = mw.compile("pythia-test", **options)  # type: ignore[arg-type]
        with torch.no_grad():
            counts.append(gemm_floor(lambda m=model: m(tokens=torch.arange(9)[None])).counts())  # type: ignore[misc]
    assert sum(counts[0].values()) == sum(counts[1].values())
