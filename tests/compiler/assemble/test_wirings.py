"""What holds for every wiring that has a file, in both orders of blocks."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
import yaml
from fused import assert_equal
from strategies import random_inputs, randomise
from test_properties import check_decoding, check_second, some_sizes
from wiring_specs import BOTH, ORDERS, TOKENS, decoder, pair

import multiway as mw
from multiway.runtime.block import calls_of
from multiway.runtime.model import Model
from multiway.specs.data_folders import WIRINGS, wiring_files
from multiway.specs.language.wiring import Manifold

Mappings = dict[str, Any]

ALL = pytest.mark.parametrize("name", sorted(wiring_files()))


def in_turn(names: list[str]) -> pytest.MarkDecorator:
    """Every name in both orders; not slow is one order for each, the other for the next."""
    cases = [
        pytest.param(name, order, marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
        for i, name in enumerate(names)
        for j, order in enumerate(ORDERS)
    ]
    return pytest.mark.parametrize(("name", "order"), cases)


IN_TURN = in_turn(sorted(wiring_files()))

# Words of the language together, each of them once the place of a defect or near to one.
TOGETHER = {
    "unfinished groups of blocks": """
        mix: {streams: [r], of: change, group: 2, router: {groups: 2}, source_norm: true}""",
    "two mixes of groups": """
        mix: {streams: [r], of: change, group: 2, at: sublayer, static: true}
        edges: [{streams: [x], of: change, group: 3, at: sublayer, add: true, router: true}]""",
    "changes of a balanced stream": """
        residual: {balance: true, gain: channel, low_rank: {rank: 2}}
        edges: [{streams: [q], of: change, static: true}]""",
    "streams that part": """
        mix: {streams: [x], static: true}
        edges: [{streams: [q], static: true}, {streams: [r], fixed: 1 / sources}]""",
    "sources in another order": """
        mix: {streams: [r, k], sources: [newest, -1], static: true, generator: {hidden: 3}}""",
    "mudd with value residual": """
        use: mudd
        edges: [{streams: [value], sources: [0, newest], static: {complement: true}}]""",
    "picked columns under a generator": """
        use: mudd
        mix: {sources: [newest], static: {columns: all}}""",
    "mudd of every second block, dilated": """
        use: mudd
        mix: {period: 2, dilation: 2}""",
    "lanes around blocks, with gains": """
        use: mhc
        lanes: {at: block, count: 3}
        residual: {gain: sublayer}
        norms: [input, output]
        edges: [{streams: [value], static: true}]""",
    "gates of three lanes": """
        use: mhc
        lanes: {count: 3, weights: {norm: true, sinkhorn: {start: exp, transpose: true}}}""",
}


def together(name: str) -> Mappings:
    found: Mappings = yaml.safe_load(TOGETHER[name])
    return found


def model_of(spec: Mappings, **options: Any) -> Model:
    model = mw.compile(mw.load(spec), dtype=torch.float64, **options)
    randomise(model)
    return model


# What it computes


@BOTH
@ALL
def test_it_is_what_the_language_says(name: str, order: str) -> None:
    check_second(decoder(name, order), 5)
    if order == ORDERS[sorted(wiring_files()).index(name) % 2]:
        check_second(pair(name, order), 3)


@in_turn(list(TOGETHER))
def test_words_together_are_what_the_language_says(name: str, order: str) -> None:
    check_second(decoder(together(name), order), 5)
    changing = decoder(together(name), order)
    other = ORDERS[1 - ORDERS.index(order)]
    check_second({**changing, "layers": [{"where": "layer == 1", "order": other}]}, 5)


@in_turn([*sorted(wiring_files()), *TOGETHER])
def test_fused_it_is_the_reference(name: str, order: str) -> None:
    """Logits or loss, and every gradient, in float64."""
    wiring = together(name) if name in TOGETHER else name
    specs = [decoder(wiring, order)]
    specs += [pair(wiring, order)] if order == "sequential" else []
    for spec in specs:
        loaded = mw.load(spec).for_head()
        program = "loss" if "lm" in spec["heads"] and order == "sequential" else "forward"
        graph = mw.build(loaded, program=program)
        assert_equal(loaded, program, random_inputs(graph, some_sizes(graph, 5)))


@pytest.mark.parametrize("name", ["denseformer", "hc", "mudd"])
def test_what_nothing_reads_is_left_for_the_pass_that_drops_it(name: str) -> None:
    """Behind the last block a masked head reads the text alone, but the sums are of all tokens."""
    head = {"kind": "masked", "reads": ["image", "text"], "predict": "text", "classes": 3}
    spec = mw.load({**pair(name), "output": {}, "heads": {"words": head}}).for_head()
    graph = mw.build(spec, program="forward")
    given = random_inputs(graph, some_sizes(graph, 3))
    assert_equal(spec, "forward", given, without=["drop_dead"])


# How it behaves


@IN_TURN
def test_no_token_sees_what_comes_behind_it(name: str, order: str) -> None:
    model = model_of(decoder(name, order))
    changed = TOKENS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    with torch.no_grad():
        before, after = (model.run("forward", tokens=t) for t in (TOKENS, changed))
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=1e-12, atol=1e-12)
    assert ((after[:, 3:] - before[:, 3:]).abs().amax(-1) > 1e-9).all()


@IN_TURN
def test_with_a_cache_it_is_the_whole_forward(name: str, order: str) -> None:
    check_decoding(decoder(name, order), [3, 1], [1, 2])


def has_no_effect(spec: mw.Spec, path: str) -> bool:
    """Before the first sublayer there is one source, and lanes are copies of it. A softmax over one
    is 1 whatever a router asks, and columns that sum to 1 mix copies to the same copies."""
    first = r"blocks\.0\.(attention\.)?"
    lanes = spec.wiring.lanes
    to_one = lanes is not None and isinstance(lanes.weights, Manifold)
    copies = to_one and re.match(rf"{first}lanes\.mix\.", path)
    return bool(copies or re.match(rf"{first}mix\.router\.", path))


@IN_TURN
def test_every_parameter_gets_a_gradient(name: str, order: str) -> None:
    model = model_of(decoder(name, order), fuse=False)
    loss, _ = model.run("loss", tokens=TOKENS[:, :-1], labels=TOKENS[:, 1:])
    loss.backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        largest = float(parameter.grad.abs().max())
        if has_no_effect(model.spec, path):
            assert largest < 1e-12, path
        else:
            assert largest > 1e-12, path


@IN_TURN
def test_every_program_lowers(name: str, order: str) -> None:
    model = mw.compile(mw.load(decoder(name, order, depth=2)))
    assert list(model.programs) == ["forward", "loss", "prefill", "decode"]
    for program in model.programs.values():
        for code in (program, *dict(calls_of(program)).values()):
            code.graph.lint()


@pytest.mark.slow
@ALL
def test_the_forward_exports(name: str) -> None:
    module = mw.compile(mw.load(decoder(name, depth=2))).programs["forward"]
    exported = torch.export.export(module, (TOKENS,), strict=False)
    torch.testing.assert_close(exported.module()(TOKENS), module(TOKENS))


# One source, taken as it is


@pytest.mark.parametrize("add", ["true", "false"])
def test_one_source_of_weight_one_is_no_sum(add: str) -> None:
    edge = f"streams: [x], where: layer == 2, sources: [0], fixed: WEIGHT, add: {add}"
    wiring = f"{{edges: [{{{edge}}}]}}"

    def made(weight: str) -> tuple[Counter[str], torch.Tensor]:
        spec = mw.load("prenorm-test", set={"wiring": wiring.replace("WEIGHT", weight)})
        model = mw.compile(spec, dtype=torch.float64, fuse=False)
        with torch.no_grad():
            result = model(torch.arange(7)[None])
        return Counter(record.op for record in mw.build(spec)), result

    (one, found), (sum_, expected) = made("1"), made("1.000000000000001")
    assert sum_["mix"] == 1 and one["mix"] == one["collect"] == one["fixed_weights"] == 0
    assert one["add"] == sum_["add"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# A mix that nobody reads


@pytest.mark.parametrize("name", ["x0", "unet"])
def test_a_where_of_a_named_wiring_that_is_never_true_warns(name: str) -> None:
    with pytest.warns(mw.MultiwayWarning, match="no block mixes by this") as found:
        spec = mw.load("prenorm-test", set={"depth": 1, "wiring": name})
    assert str(found[0].message).startswith(f"{WIRINGS / name}.yaml:")
    assert [each.code for each in spec.warnings] == ["empty-stream"]
    plain = mw.build(mw.load("prenorm-test", set={"depth": 1}))
    assert list(mw.build(spec).params) == list(plain.params)
    assert not mw.load("prenorm-test", set={"wiring": name}).warnings
