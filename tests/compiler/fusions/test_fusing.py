"""Whatever the pipeline makes of a graph computes what the graph as built does.

Random specs and random subsets of passes, in float64: outputs and every gradient. Generic tests go
over the passes, the fusions and the kernels that there are, so a new one is tested by existing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from typing import Any

import pytest
import torch
from fused import (
    assert_equal,
    gradients,
    heads,
    member,
    outputs,
    pair,
    settings,
    sizes_for,
    stages,
)
from hypothesis import given
from hypothesis import strategies as st
from members import in_turn, members
from op_samples import OPS, floats, replaced, run, values_of
from strategies import random_inputs, randomise, specs
from test_properties import flat, some_sizes

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Sample
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.graph.types import Tensor
from multiway.compiler.graph.verify import VerificationError, verify
from multiway.compiler.lowering.check import corresponds
from multiway.compiler.lowering.dispatch import callee
from multiway.compiler.matching import match as fusion_module
from multiway.compiler.matching.match import Fusion, Match, fuse, fusions
from multiway.compiler.passes.plan_memory import saved_bytes
from multiway.compiler.pipeline import PIPELINE, Options, Pass, Stage
from multiway.compiler.pipeline import run as run_pipeline
from multiway.runtime.kernels import kernels
from multiway.runtime.kernels.linear import packed_linear
from multiway.specs.errors import MultiwayError

Mappings = dict[str, Any]
NAMES = [each.name for each in PIPELINE]
PASS_OF = {op: each.name for each in PIPELINE for op in each.fuses}
EXACT = [each for each in PIPELINE if each.numerics == "exact"]


# Random specs, random passes


def check_fused(spec: Mappings, length: int, **options: Any) -> None:
    for each in heads(spec):
        for program in program_names(each):
            graph = mw.build(each, program=program)
            given = random_inputs(graph, some_sizes(graph, length))
            assert_equal(each, program, given, **options)


SUBSETS = st.lists(st.sampled_from(NAMES), unique=True)
OPTIONS = st.fixed_dictionaries(
    {
        "without": SUBSETS,
        "mode": st.sampled_from(["train", "train", "inference"]),
        "memory_budget": st.sampled_from([None, 0, 2_000, 5_000, 20_000]),
    }
)


@given(specs(), st.integers(1, 5), OPTIONS)
@settings(8)
def test_fused_is_the_reference(spec: Mappings, length: int, options: Mappings) -> None:
    check_fused(spec, length, **options)


@given(specs(), st.sampled_from(["train", "inference"]))
@settings(10)
def test_a_fused_graph_is_well_formed_lowered_as_it_is_and_fused_no_further(
    spec: Mappings, mode: Any
) -> None:
    for each in heads(spec):
        model = mw.compile(each, device="meta", mode=mode)
        for program in program_names(each):
            graph = run_pipeline(mw.build(each, program=program), Options(mode=mode))[-1].graph
            verify(graph)
            assert corresponds(graph, model.programs[program])
            plain = graph.to_json()
            assert LayerGraph.from_json(json.loads(json.dumps(plain))).to_json() == plain
            again = run_pipeline(graph, Options(mode=mode))[-1].graph
            assert shape_of(again) == shape_of(graph)


def shape_of(graph: LayerGraph) -> Any:
    """What a graph is, without the marks of passes and the order of building."""
    return {
        record.path: (record.op, dict(record.attrs), record.params, graph.sources(record.path))
        for record in graph
    }


@pytest.mark.fuzz
@given(specs(), st.integers(1, 5), OPTIONS)
@settings(600)
def test_fuzz_fused(spec: Mappings, length: int, options: Mappings) -> None:
    check_fused(spec, length, **options)


# Every test member of the zoo


@in_turn(members(), mode=["train", "inference"])
def test_members_fused_are_the_reference(name: str, head: str, mode: str) -> None:
    spec = mw.load(name).for_head(head)
    for program in program_names(spec):
        graph = mw.build(spec, program=program)
        assert_equal(spec, program, random_inputs(graph, sizes_for(graph)), mode=mode)


def test_decoding_is_the_forward_program() -> None:
    for name in ("pythia-test", "mudd-pythia-test", "muddformer-test"):
        model = mw.compile(name, dtype=torch.float64, mode="inference")
        tokens = torch.randint(0, 200, (2, 6), generator=torch.Generator().manual_seed(0))
        whole = model.run("forward", tokens=tokens)
        cache = mw.runtime.model.new_cache(model, batch=2, slots=8)
        logits, cache = model.run("prefill", tokens=tokens[:, :4], cache=cache)
        torch.testing.assert_close(logits, whole[:, :4])
        for t in (4, 5):
            positions = torch.full((2, 1), t)
            logits, cache = model.run(
                "decode", tokens=tokens[:, t : t + 1], positions=positions, cache=cache
            )
            torch.testing.assert_close(logits[:, 0], whole[:, t])


# Every pass: fires, leaves alone, refuses


@functools.cache
def firing(name: str) -> tuple[mw.Spec, str, Mappings]:
    """A spec, a program of it and options with which a pass fires, found where it says it does."""
    (each,) = (one for one in PIPELINE if one.name == name)
    models = each.fires_on or tuple(m for op in each.fuses for m in fusions()[op].fires_on)
    modes = (each.only,) if each.only else ("train", "inference")
    for model, mode in itertools.product(models, modes):
        options = {"mode": mode, "memory_budget": 0, "sizes": {"B": 2, "T": 8}}
        for spec in (member(model).for_head(head) for head in member(model).heads):
            for program in program_names(spec):
                if any(s.name == name and s.tally.fired for s in staged(spec, program, **options)):
                    return spec, program, options
    raise AssertionError(f"{name} fires on none of {models}")


def staged(spec: mw.Spec, program: str, **options: Any) -> list[Stage]:
    return run_pipeline(mw.build(spec, program=program), Options(**options))


@pytest.mark.parametrize("each", PIPELINE, ids=NAMES)
def test_a_pass_fires_and_marks_what_it_made(each: Pass) -> None:
    spec, program, options = firing(each.name)
    found = staged(spec, program, **options)
    at = [stage.name for stage in found].index(each.name)
    before = {record.path: record.op for record in found[at - 1].graph}
    for record in found[at].graph:
        if before.get(record.path) != record.op:
            assert each.name in record.passes, record.path
    without = staged(spec, program, **options, without=[each.name])
    assert each.name not in [stage.name for stage in without]


@pytest.mark.parametrize("each", PIPELINE, ids=NAMES)
def test_a_pass_leaves_alone_what_it_does_not_know(each: Pass) -> None:
    graph = LayerGraph(name="forward", params={})
    (x,) = graph.add(Record(path="inputs.x", op="input", outputs=(Tensor((2, 3, 4)),)), {})
    (y,) = graph.add(Record(path="blocks.0.y", op="activation", attrs={"kind": "relu"}), {"x": x})
    graph.add(Record(path="outputs", op="output"), {"y": y})
    assert each.apply(graph, Tally(), Options()) is graph


def test_an_inner_value_with_another_reader_is_not_fused() -> None:
    spec = mw.load("mudd-pythia-test")
    inner = ["blocks.1.mix.activation", "blocks.1.attention.query_heads", "blocks.1.ffn.down"]
    tapped = run_pipeline(mw.build(spec, taps=inner), Options())
    refused = {p: why for stage in tapped for p, why in stage.tally.refused.items()}
    for path, reason in {
        "blocks.1.mix.weights": "blocks.1.mix.activation is also read by outputs",
        "blocks.1.attention.query_rotary": "blocks.1.attention.query_heads is also read by outputs",
    }.items():
        assert refused[path] == reason
    left = tapped[-1].graph
    assert all(path in left for path in inner)
    assert "blocks.2.mix.activation" not in left  # where nothing is tapped
    model = mw.compile(spec, taps=inner, dtype=torch.float64)
    plain = mw.compile(spec, taps=inner, dtype=torch.float64, fuse=False)
    for each in (model, plain):
        randomise(each)
    tokens = torch.arange(10)[None]
    for a, b in zip(flat(model(tokens=tokens)), flat(plain(tokens=tokens)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("each", "name"),
    [pytest.param(f, n, id=f"{f.op}-{n}") for f in fusions().values() for n in f.fires_on],
)
def test_a_fusion_fires_and_an_inner_value_that_is_tapped_is_still_put_out(
    each: Fusion, name: str
) -> None:
    program, spec = "loss", member(name)
    spec = spec.for_head("vqa" if "vqa" in spec.heads else None)
    built = mw.build(spec, program=program)
    found = staged(spec, program)
    graph = found[[stage.name for stage in found].index(PASS_OF[each.op]) - 1].graph
    tally = Tally()
    fuse(graph, each, tally, PASS_OF[each.op])
    assert tally.fired
    match = next(m for r in graph if each.starts_at(r) and (m := each.match(graph, r)))
    inner = {Value(path) for path in match.nodes if path in built} - set(match.outputs)
    taps = sorted(value.path for value in inner)
    reference, fused = pair(spec, taps=taps)
    given = random_inputs(built, sizes_for(built))
    values = [outputs(model, program, given) for model in (fused, reference)]
    assert len(values[0]) == len(built.sources("outputs")) + len(taps)
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_norms_are_not_folded_into_a_tied_table() -> None:
    spec = mw.load(
        {
            "multiway": 1,
            "name": "tied",
            "extends": "pythia-test",
            "heads": {"lm": {"kind": "causal_lm", "tie": True}},
        }
    )
    found = run_pipeline(mw.build(spec), Options(mode="inference"))
    refused = next(stage for stage in found if stage.name == "fold_norms").tally.refused
    assert refused == {"output.norm": "the weight of heads.lm.logits has another reader"}


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_the_sequence_is_joined_for_attention_only(mode: str) -> None:
    found = stages("beit3-test", head="vqa", mode=mode)
    built, sunk = (
        [r.path for r in found[stage].graph if r.op in ("concat", "split") and "blocks" in r.path]
        for stage in ("built", "sink_segments")
    )
    assert len(built) == 2 * 12
    joined = [f"blocks.{i}.attention.{name}" for i in (0, 1) for name in ("join.1", "join.2")]
    assert sunk == joined


def test_a_sequence_that_only_a_head_cuts_stays_whole() -> None:
    shared = {f"block.{part}.experts": None for part in ("norm", "attention", "ffn")}
    spec = mw.load("beit3-test", set=shared).for_head("mlm")
    graph = mw.build(spec)
    assert any(record.op == "split" for record in graph)
    sink = next(each for each in PIPELINE if each.name == "sink_segments")
    assert sink.apply(graph, Tally(), Options()) is graph


# A wrong pass is caught


def test_a_fusion_that_is_not_what_it_replaces_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = mw.build("mudd-pythia-test")
    each = fusions()["token_weights"]

    def wrong(graph: LayerGraph, record: Record) -> Match | None:
        found = each.match(graph, record)
        assert found is not None
        attrs = {**found.record.attrs, "eps": 1.0}
        return dataclasses.replace(found, record=dataclasses.replace(found.record, attrs=attrs))

    broken = dataclasses.replace(each, match=wrong)
    with pytest.raises(VerificationError, match="is no rms_norm with"):
        fuse(graph, broken, Tally(), "fuse_mix")


def test_a_kernel_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiway.runtime.kernels.linear import linear_sum

    plain = linear_sum._LinearSum.forward

    def wrong(ctx: Any, *args: Any) -> torch.Tensor:
        return plain(ctx, *args) * (1 + 1e-6)

    monkeypatch.setattr(linear_sum._LinearSum, "forward", staticmethod(wrong))
    spec = mw.load("pythia-test")
    graph = mw.build(spec)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(spec, "forward", random_inputs(graph, sizes_for(graph)))


def test_a_pass_that_changes_a_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: LayerGraph, tally: Tally, options: Options) -> LayerGraph:
        rewriter = fusion_module.Rewriter(graph)
        for record in graph:
            outputs = record.outputs[:1] if record.op == "mix" else record.outputs
            rewriter.keep(dataclasses.replace(record, outputs=outputs))
        return rewriter.finish()

    broken = dataclasses.replace(PIPELINE[0], run=wrong)
    monkeypatch.setattr("multiway.compiler.pipeline.PIPELINE", (broken,))
    with pytest.raises(VerificationError):
        run_pipeline(mw.build("mudd-pythia-test"), Options())


# Options


def test_an_unknown_pass_is_an_error() -> None:
    with pytest.raises(MultiwayError, match="there is no pass 'fuse_mx'") as caught:
        mw.compile("pythia-test", without=["fuse_mx"])
    assert "nearest:  fuse_mix" in str(caught.value)


@pytest.mark.parametrize("name", ["group_products", "place_hiddens", "fuse_norms"])
def test_a_pass_that_went_is_named_with_the_version_that_had_it(name: str) -> None:
    with pytest.raises(MultiwayError) as caught:
        Options(without=[name])
    text = str(caught.value)
    assert text == (
        f"--without: error[unknown-pass]: there is no pass {name!r} any more: "
        "0.1.0 before its release had it"
    )


def test_an_unknown_allowance_is_an_error() -> None:
    with pytest.raises(MultiwayError, match="'fast' cannot be allowed"):
        Options(allow=["fast"])


def test_approximations_run_where_a_model_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(graph: LayerGraph, *_: Any) -> LayerGraph:
        ran.append(graph.name)
        return graph

    approx = Pass(name="guess", does="nothing", numerics="approx", run=run)
    monkeypatch.setattr("multiway.compiler.pipeline.PIPELINE", (approx,))
    for allow in ((), ("approx",)):
        assert mw.compile("pythia-test", allow=allow).programs["forward"]
        assert ran == ["forward"] * len(allow)


@pytest.mark.parametrize("each", EXACT, ids=[p.name for p in EXACT])
def test_an_exact_pass_changes_no_bit(each: Pass) -> None:
    spec, program, options = firing(each.name)
    graph = mw.build(spec, program=program)
    given = random_inputs(graph, sizes_for(graph), dtype=torch.float32)
    results = []
    others = [n for n in NAMES if n not in (each.name, "fold_norms")]  # which makes nodes equal
    for without in (others, [*others, each.name]):
        model = mw.compile(spec, **options, without=without)
        found = outputs(model, program, given)
        results.append([*found, *gradients(model, found).values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_every_pass_the_graph_is_as_built() -> None:
    graph = mw.build("mudd-pythia-test")
    assert run_pipeline(graph, Options(without=NAMES))[-1].graph is graph


def test_an_analysis_looks_and_gives_numbers() -> None:
    def count(graph: LayerGraph, tally: Tally, _: Options) -> LayerGraph:
        tally.numbers["linears"] = sum(record.op == "linear" for record in graph)
        return graph

    look = Pass(name="count", does="counts", kind="analysis", run=count, before="fuse_projections")
    built = mw.build("pythia-test")
    stages = {s.name: s for s in run_pipeline(built, Options(passes=[look]))}
    want = sum(record.op == "linear" for record in built)
    assert stages["count"].tally.numbers == {"linears": want}
    assert list(stages).index("count") + 1 == list(stages).index("fuse_projections")
    model = mw.compile("pythia-test", passes=[look])
    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens=tokens), mw.compile("pythia-test")(tokens=tokens))


def test_an_analysis_that_changes_the_graph_is_caught() -> None:
    heads = next(each for each in PIPELINE if each.name == "fuse_attention")
    look = dataclasses.replace(heads, name="mine", kind="analysis", before=heads.name)
    graph = mw.build("mudd-pythia-test")
    with pytest.raises(VerificationError, match="mine is an analysis, and changed the graph"):
        run_pipeline(graph, Options(passes=[look]))


def test_own_passes_are_checked() -> None:
    mine = dataclasses.replace(PIPELINE[0], name="mine")
    for passes, said in (
        ([PIPELINE[0]], "two passes are called 'sink_segments'"),
        ([mine, mine], "two passes are called 'mine'"),
        ([dataclasses.replace(mine, before="fuse_mx")], "nearest:  fuse_mix"),
    ):
        with pytest.raises(MultiwayError, match=said):
            Options(passes=passes)
    assert "mine" in [each.name for each in Options(passes=[mine], without=["mine"]).pipeline()]


def test_passes_are_declared() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert set(PASS_OF) == set(fusions())  # every fusion stands in one pass
    assert len(PASS_OF) == sum(len(each.fuses) for each in PIPELINE)
    for each in PIPELINE:
        assert each.does and each.numerics in ("exact", "rounding", "approx")
        assert bool(each.fires_on) != bool(each.fuses)
    for name, each in fusions().items():
        assert OPS[name].composed and (each.roots or each.norms) and each.fires_on


# Kernels


KERNEL_SAMPLES = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name in kernels()
    for i, sample in enumerate(OPS[name].samples)
]


@pytest.mark.parametrize("name", kernels())
def test_a_kernel_fits_a_sample(name: str) -> None:
    """Else the tests below compare the reference with itself."""
    op = OPS[name]
    fits = kernels()[name].fits
    assert any(fits(op.full_attrs(each.attrs), {}) is None for each in op.samples)


@pytest.mark.parametrize(("name", "sample"), KERNEL_SAMPLES)
def test_a_kernel_is_its_op(name: str, sample: Sample) -> None:
    op = OPS[name]
    attrs = op.full_attrs(sample.attrs)
    results = []
    for function in (op.reference, callee(op, attrs, {}, packed=True)):
        values = values_of(op, sample)
        leaves = floats(values)
        given = replaced(values, [leaf.requires_grad_() for leaf in leaves])
        found = floats(flat(function(**given, **attrs)))
        total = sum((t * torch.arange(1.0, 1 + t.numel()).view(t.shape)).sum() for t in found)
        made = (None,) * len(leaves)
        if total.requires_grad:  # type: ignore[union-attr]
            made = torch.autograd.grad(total, leaves, allow_unused=True)  # type: ignore[arg-type]
        results.append((found, made))
    (want, slopes), (got, found_slopes) = results
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(found_slopes, slopes, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_a_kernel_is_of_an_op() -> None:
    assert set(kernels()) <= set(OPS)
    assert all(kernel.doc for kernel in kernels().values())
    assert run is not None


# Parameters


def test_files_do_not_show_what_was_fused(tmp_path: Any) -> None:
    spec = mw.load("pythia-test")
    plain, fused = pair(spec)
    before = {name: p.clone() for name, p in fused.named_parameters()}
    _ = fused.programs["loss"]
    mw.save(fused, tmp_path / "fused.safetensors")
    mw.save(plain, tmp_path / "plain.safetensors")
    for path in ("fused", "plain"):
        for fused_too in (True, False):
            loaded = mw.compile(
                spec,
                dtype=torch.float64,
                fuse=fused_too,
                weights=tmp_path / f"{path}.safetensors",
            )
            for name, parameter in loaded.named_parameters():
                assert torch.equal(parameter, before[name])


def test_a_model_that_ran_without_gradients_first_can_be_trained() -> None:
    model = mw.compile("pythia-test")
    with torch.inference_mode():
        model(tokens=torch.arange(4)[None])
    model.loss(tokens=torch.arange(4)[None], labels=torch.arange(4)[None])[0].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_folded_weights_of_one_input_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    # Heads of 10 channels, so that widths are no multiples of 16: there one product gains.
    spec = mw.load("pythia-test", set={"block.attention.head_width": 10})
    reference, model = pair(spec, mode="inference", without=["pack_weights"])
    tokens, products = torch.arange(6)[None], []
    linear = torch.nn.functional.linear

    def spy(x: Any, weight: Any, bias: Any = None) -> Any:
        products.append(weight.shape)
        return linear(x, weight, bias)

    monkeypatch.setattr(packed_linear, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(packed_linear, "MANY_TOKENS", 0)
    with torch.no_grad():
        want = reference(tokens=tokens)
        monkeypatch.setattr(torch.nn.functional, "linear", spy)
        torch.testing.assert_close(model(tokens=tokens), want)
    assert products.count((3 * 4 * 10, 64)) == len(spec.blocks)


def test_folded_weights_follow_their_parameters() -> None:
    reference, model = pair(mw.load("pythia-test"), mode="inference")
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(model(tokens=tokens), reference(tokens=tokens))
    for each in (reference, model):
        randomise(each, seed=5)
    torch.testing.assert_close(model(tokens=tokens), reference(tokens=tokens))
    assert model.state_dict().keys() == reference.state_dict().keys()
    assert not any(p.requires_grad for p in model.parameters())


def test_activations_take_their_norms_and_folded_weights() -> None:
    routed = stages("beit3-test", head="vqa")["fuse_activations"].graph
    found = routed.record("blocks.0.ffn.sub_norm.vision")
    assert found.op == "linear_activation" and found.attrs["norm"] == "layer_norm"
    assert set(found.params) == {"weight", "bias", "gain", "shift"}
    folded = stages("pythia-test", mode="inference")["fuse_activations"].graph
    sources = folded.sources("blocks.0.ffn.activation")
    assert {name: folded.record(value.path).op for name, value in sources.items()} == {
        "x": "layer_norm",
        "weight": "fold_gain",
        "bias": "fold_shift",
    }


def test_projections_and_residuals_take_folded_weights() -> None:
    graph = stages("beit3-test", head="vqa", mode="inference")["fuse_residual"].graph
    for path, role in (("query_key_value", "weights"), ("add", "weights"), ("add", "biases")):
        found = graph.sources(f"blocks.0.attention.{path}.text")
        given = {graph.record(v.path).op for name, v in found.items() if name.startswith(role)}
        assert given == {"fold_gain" if role == "weights" else "fold_shift"}


def test_what_reads_one_norm_in_two_parts_stays_apart() -> None:
    """In inference both norms of a parallel block are one: gelu is to find its linear alone."""
    graph = stages("pythia-test", mode="inference")["fuse_activations"].graph
    packed = graph.record("blocks.0.attention.query_key_value")
    assert len([name for name in graph.sources(packed.path) if name.startswith("weights")]) == 3
    assert graph.record("blocks.0.ffn.activation").op == "linear_activation"


def test_a_plan_counts_what_a_fused_activation_keeps() -> None:
    found = stages("pythia-test", "loss")
    sizes = {"B": 2, "T": 8}
    before, after = (
        saved_bytes(found[name].graph, sizes) for name in ("plan_memory", "fuse_activations")
    )
    assert before == after


def test_matches_do_not_overlap() -> None:
    found = stages("mudd-pythia-test")
    graph = found["fuse_mix"].graph
    sums = [record for record in graph if record.op == "fused_mix"]
    assert [len(r.attrs["normed"]) for r in sums] == [4, 4, 4, 1]
    assert [r.attrs["raw"] for r in sums] == [[3], [3], [3], []]
    assert Value("blocks.1.mix.sum", 4) in graph.sources("blocks.1.attention.add").values()
