"""The layer graph: what verification catches, what taps give, how it is printed and drawn."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import multiway as mw
from multiway.compiler.graph.layer_graph import (
    OUTPUT,
    Init,
    LayerGraph,
    Param,
    Record,
    Value,
    block_of,
)
from multiway.compiler.graph.order import steps
from multiway.compiler.graph.types import Tensor, sym
from multiway.compiler.graph.verify import VerificationError, verify
from multiway.compiler.lowering.check import corresponds
from multiway.compiler.lowering.containers import containers_for
from multiway.compiler.lowering.lower import lower
from multiway.compiler.views.picture import to_html, to_svg
from multiway.compiler.views.text import Fold, to_text, visible
from multiway.runtime.block import calls_of
from multiway.specs.errors import MultiwayError

MUDD = "mudd-pythia-test"
UP = "blocks.1.ffn.up"


def graph_of(name: str = MUDD, **more: Any) -> LayerGraph:
    return mw.build(name, **more)


def small() -> LayerGraph:
    """x -> a -> b, a two-node program."""
    params = {"w": Param(path="w", shape=(4, 4), init=Init(kind="zeros"))}
    graph = LayerGraph(name="small", params=params)
    (x,) = graph.add(Record(path="inputs.x", op="input", outputs=(Tensor((sym("B"), 4)),)), {})
    (a,) = graph.add(Record(path="a", op="linear", params={"weight": "w"}), {"x": x})
    (b,) = graph.add(Record(path="b", op="add"), {"a": a, "b": x})
    graph.add(Record(path="outputs", op="output"), {"y": b})
    return graph


# Verification


def replace(graph: LayerGraph, path: str, **changes: Any) -> None:
    """Changes a record behind the graph's back."""
    record = dataclasses.replace(graph.record(path), **changes)
    graph.nx.nodes[path]["record"] = record


def reconnect(graph: LayerGraph, path: str, argument: str, source: str, port: int = 0) -> None:
    """Moves an edge behind the graph's back."""
    old = graph.sources(path)[argument]
    data = dict(graph.nx.edges[old.path, path, argument]) | {"port": port}
    graph.nx.remove_edge(old.path, path, key=argument)
    graph.nx.add_edge(source, path, key=argument, **data)


def wrong_shape(graph: LayerGraph) -> None:
    replace(graph, UP, outputs=(Tensor((sym("B"), sym("T"), 1)),))


def wrong_dtype(graph: LayerGraph) -> None:
    (kind,) = graph.record(UP).outputs
    assert isinstance(kind, Tensor)
    replace(graph, UP, outputs=(Tensor(kind.shape, "int"),))


def later_node(graph: LayerGraph) -> None:
    # The same nodes and edges, but one node has moved to the end of the order.
    path, edges = "blocks.0.attention.add", graph_of().nx
    data = graph.nx.nodes[path]
    graph.nx.remove_node(path)
    graph.nx.add_node(path, **data)
    graph.nx.add_edges_from(edges.in_edges(path, keys=True, data=True))
    graph.nx.add_edges_from(edges.out_edges(path, keys=True, data=True))


def missing_parameter(graph: LayerGraph) -> None:
    del graph.params[f"{UP}.weight"]


def misshaped_parameter(graph: LayerGraph) -> None:
    param = graph.params[f"{UP}.weight"]
    graph.params[f"{UP}.weight"] = dataclasses.replace(param, shape=(3, 3))


def unknown_role(graph: LayerGraph) -> None:
    replace(graph, UP, params={"wait": f"{UP}.weight"})


def parameter_by_edge(graph: LayerGraph) -> None:
    graph.nx.add_edge("embed.tokens.tokens", UP, key="weight", port=0, argument="weight", order=1)


def unknown_argument(graph: LayerGraph) -> None:
    graph.nx.add_edge("embed.tokens.tokens", UP, key="y", port=0, argument="y", order=1)


def missing_argument(graph: LayerGraph) -> None:
    source = graph.sources(UP)["x"]
    graph.nx.remove_edge(source.path, UP, key="x")


def missing_port(graph: LayerGraph) -> None:
    source = graph.sources(UP)["x"]
    graph.nx.edges[source.path, UP, "x"]["port"] = 1


def cycle(graph: LayerGraph) -> None:
    reconnect(graph, "blocks.0.ffn.norm", "x", "blocks.0.ffn.down")


def no_output(graph: LayerGraph) -> None:
    graph.nx.remove_node("outputs")


BREAKS: Mapping[Callable[[LayerGraph], None], str] = {
    wrong_shape: f"{UP}: outputs ",
    wrong_dtype: f"{UP}: outputs ",
    later_node: "which comes later",
    missing_parameter: f"{UP}: no parameter {UP}.weight",
    misshaped_parameter: f"{UP}: D is 64 in x but 3 in weight",
    unknown_role: f"{UP}: linear has no parameter wait",
    parameter_by_edge: f"{UP}: linear takes no {{'weight'}}",
    unknown_argument: f"{UP}: linear takes no {{'y'}}",
    missing_argument: f"{UP}: x is missing",
    missing_port: f"{UP}.x reads port 1 of 1",
    cycle: "the graph has a cycle",
    no_output: "0 outputs",
}


def test_a_graph_that_was_built_is_well_formed() -> None:
    verify(graph_of())
    verify(small())


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_verification_catches(change: Callable[[LayerGraph], None]) -> None:
    graph = graph_of()
    change(graph)
    with pytest.raises(VerificationError, match=re.escape(BREAKS[change])):
        verify(graph)


def test_verification_catches_blocks_that_need_each_other() -> None:
    graph = LayerGraph(name="x", params={})
    (x,) = graph.add(Record(path="inputs.x", op="input", outputs=(Tensor((2,)),)), {})
    (a,) = graph.add(Record(path="blocks.0.a", op="l2_normalise"), {"x": x})
    (b,) = graph.add(Record(path="blocks.1.b", op="l2_normalise"), {"x": a})
    (c,) = graph.add(Record(path="blocks.0.c", op="l2_normalise"), {"x": b})
    graph.add(Record(path="outputs", op="output"), {"y": c})
    with pytest.raises(VerificationError, match="two blocks need each other"):
        verify(graph)


def test_a_wrong_edge_is_refused_while_building() -> None:
    graph = small()
    graph.add(Record(path="d", op="concat_features"), {"parts": [Value("a"), Value("b")]})
    with pytest.raises(MultiwayError) as caught:
        graph.add(Record(path="e", op="linear", params={"weight": "w"}), {"x": Value("d")})
    assert str(caught.value) == (
        "small: error[shape]: e (linear): D is 8 in x but 4 in weight\n"
        "  op: x[*,D], weight[F,D], bias?[F] -> y[*,F]"
    )


def test_a_graph_that_grows_knows_the_order_of_its_nodes() -> None:
    graph = graph_of()
    first, last = (list(graph)[i].path for i in (0, -1))
    assert graph.before(first, last) and not graph.before(last, first)
    graph.adopt(Record(path="late", op="positions"), {})
    assert graph.before(last, "late") and not graph.before("late", first)
    assert not graph.before("late", "late")


def test_two_nodes_cannot_share_a_path() -> None:
    graph = small()
    with pytest.raises(AssertionError, match="two nodes at a"):
        graph.add(Record(path="a", op="add"), {"a": Value("b"), "b": Value("b")})


# Correspondence with lowered code


def lowered(graph: LayerGraph) -> torch.fx.GraphModule:
    parameters = {p: torch.nn.Parameter(torch.zeros(s.shape)) for p, s in graph.params.items()}
    root = containers_for(parameters.items())
    if "blocks" not in dict(root.named_children()):
        root.add_module("blocks", torch.nn.Module())
    return lower(graph, root)


def test_lowered_code_corresponds_to_its_own_graph_only() -> None:
    graph, other = graph_of(), graph_of()
    module = lowered(graph)
    assert corresponds(graph, module)
    reconnect(other, "blocks.1.ffn.norm", "x", "blocks.1.mix.sum", port=1)
    verify(other)
    assert not corresponds(other, module)
    assert corresponds(other, lowered(other))


@pytest.mark.parametrize("program", ["forward", "loss", "prefill", "decode"])
def test_lowered_code_reads_the_parameters_of_the_graph(program: str) -> None:
    graph = graph_of(program=program)
    module = lowered(graph)
    read = set()
    for path, part in [("", module), *calls_of(module)]:
        prefix = f"{path}." if path else ""
        read |= {prefix + str(n.target) for n in part.graph.nodes if n.op == "get_attr"}
        kinds = [n.op for n in part.graph.nodes]
        called = next(i for i, kind in enumerate(kinds) if kind.startswith("call_"))
        assert "get_attr" not in kinds[called:]  # between products, a look costs more
    assert read == {path for record in graph for path in record.params.values()}


# Taps


def test_taps_come_out_by_name() -> None:
    taps = [
        "hidden.0",
        "streams.0.k",
        "dynamic.1",
        "blocks.2.ffn.up",
        "blocks.2.mix.sum:3",
        "output",
    ]
    plain, tapped = mw.compile(MUDD), mw.compile(MUDD, taps=taps)
    tokens = torch.arange(10).reshape(2, 5)
    logits, found = tapped(tokens=tokens)
    assert torch.equal(logits, plain(tokens=tokens))
    assert list(found) == taps
    graph = graph_of()
    for tap in taps:
        assert len(found[tap].shape) == len(graph.shape(graph.resolve(tap)))
    assert torch.equal(found["hidden.0"], plain.get_parameter("embed.text.weight")[tokens])
    output = torch.nn.functional.linear(found["output"], plain.get_parameter("heads.lm.weight"))
    assert torch.equal(output, logits)


def test_every_short_name_of_a_stream_is_the_input_of_a_block() -> None:
    graph = graph_of()
    for layer in range(3):
        for port, way in enumerate("qkvr"):
            value = Value(f"blocks.{layer + 1}.mix.sum", port)
            assert graph.resolve(f"streams.{layer}.{way}") == value
    assert graph.resolve("streams.3.r") == Value("output.mix.sum", 0)
    assert graph.resolve("hidden.4") == Value("blocks.3.hidden")


def test_passes_have_their_names_before_taps() -> None:
    graph = graph_of("beit3-test", head="retrieval", program="loss")
    assert graph.resolve("image.hidden.0") != graph.resolve("text.hidden.0")


@pytest.mark.parametrize(
    "tap", ["hiden.0", "streams.9.q", "blocks.1.mix.sum:4", "outputs", "blocks.1.mix.sum:²", ""]
)
def test_an_unknown_tap_is_an_error(tap: str) -> None:
    with pytest.raises(MultiwayError) as caught:
        mw.build(MUDD, taps=[tap])
    assert caught.value.problems[0].code == "unknown-tap"


def test_the_error_of_an_unknown_tap_names_the_nearest() -> None:
    with pytest.raises(MultiwayError) as caught:
        mw.build(MUDD, taps=["hiden.2"])
    assert str(caught.value) == (
        "taps: error[unknown-tap]: program 'forward' has no value 'hiden.2'\n"
        "  expected: the path of a node, or one of hidden.0, reads.0, outputs.0, hidden.1, "
        "dynamic.0, streams.0.q, and 32 more\n"
        "  nearest:  hidden.2"
    )


def test_an_unknown_program_is_an_error() -> None:
    with pytest.raises(MultiwayError) as caught:
        mw.build(MUDD, program="forwards")
    assert str(caught.value) == (
        "mudd-pythia-test: error[unknown-program]: head 'lm' has no program 'forwards'\n"
        "  expected: one of forward, loss, prefill, decode\n"
        "  nearest:  forward"
    )


# Order


def test_blocks_are_called_as_wholes_in_order() -> None:
    order = steps(graph_of())
    names = [step.block for step in order if step.block]
    assert names == [f"blocks.{layer}" for layer in range(4)]
    seen: set[str] = set()
    graph = graph_of()
    for step in order:
        inside = {record.path for record in step.records}
        for record in step.records:
            assert {v.path for v in graph.sources(record.path).values()} <= seen | inside
        seen |= inside
    assert len(seen) == len(graph)


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("blocks.3.attention.query", "blocks.3"),
        ("image.blocks.12.hidden", "image.blocks.12"),
        ("blocks.3", ""),
        ("embed.blocks", ""),
        ("heads.lm.logits", ""),
        ("outputs", ""),
    ],
)
def test_the_block_of_a_node(path: str, block: str) -> None:
    assert block_of(path) == block


# Printing


def test_a_line_says_op_inputs_types_and_parameters() -> None:
    text = to_text(small())
    assert text == (
        "# program small: 4 nodes\n"
        "inputs.x = input() -> [B,4]\n"
        "a = linear(x=inputs.x) -> [B,4]  # w[4,4]\n"
        "b = add(a=a, b=inputs.x) -> [B,4]\n"
        "outputs = output(y=b)"
    )


def folds(name: str | Mapping[str, Any], **more: Any) -> list[Fold]:
    return [part for part in visible(mw.build(name, **more)) if isinstance(part, Fold)]


def test_blocks_of_one_layout_are_folded_whatever_their_sizes() -> None:
    assert folds(MUDD) == [
        Fold("blocks.0", "blocks.0", 1, True),
        Fold("blocks.1", "blocks.3", 3, False),
    ]
    assert folds("beit3-test", head="features", set={"depth": 4}) == [
        Fold("blocks.0", "blocks.3", 4, True)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"ffn": {"activation": "relu"}},
        {"attention": {"mask": "causal"}},
        {"norm": {"eps": 1e-3}},
        {"attention": {"bias": False}},
        {"ffn": {"gate": True}},
        {"order": "parallel"},
    ],
    ids=str,
)
def test_a_block_that_differs_in_more_than_sizes_stands_alone(change: Mapping[str, Any]) -> None:
    spec = {
        "multiway": 1,
        "extends": "beit3-test",
        "name": "changed",
        "dims": {"depth": 4},
        "layers": [{"where": "layer == 2", **change}],
    }
    assert [fold.count for fold in folds(spec, head="features")] == [2, 1, 1]


def test_unfolded_text_names_every_node_once() -> None:
    graph = graph_of()
    lines = to_text(graph, fold=False).splitlines()[1:]
    assert [line.split(" = ")[0] for line in lines] == [
        record.path for step in steps(graph) for record in step.records
    ]


def test_json_is_plain_and_complete() -> None:
    graph = graph_of(taps=["hidden.1"])
    plain = graph.to_json()
    assert json.loads(json.dumps(plain)) == plain
    again = LayerGraph.from_json(plain)
    assert again.names == graph.names
    assert [again.record(r.path) for r in graph] == list(graph)
    assert all(again.sources(r.path) == graph.sources(r.path) for r in graph)


# Drawing


@pytest.mark.parametrize(("name", "head"), [(MUDD, "lm"), ("beit3-test", "retrieval")])
def test_a_picture_is_xml_with_a_box_for_every_visible_node(name: str, head: str) -> None:
    graph = graph_of(name, head=head)
    root = ElementTree.fromstring(to_svg(graph))
    boxes = [e for e in root.iter("{http://www.w3.org/2000/svg}g") if e.get("class") == "node"]
    shown = [part for part in visible(graph) if not isinstance(part, Fold)]
    assert len(boxes) == sum(len(step.records) for step in shown)
    assert any(record.op == OUTPUT for step in shown for record in step.records)
    page = to_html(graph, "a <b> & c")
    assert "a &lt;b&gt; &amp; c" in page
