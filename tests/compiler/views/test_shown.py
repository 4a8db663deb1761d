"""What a user holds shows itself in a line, and a graph in a notebook as a picture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

import multiway as mw
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.pipeline import Options, Stages
from multiway.compiler.views.picture import to_svg


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (
            lambda: mw.load("beit3-test", set={"depth": 5}),
            "Spec(beit3-test: 5 blocks of width 48, heads imageclassification, nlvr2, vqa, "
            "captioning, retrieval, features, mlm, mim)",
        ),
        (
            lambda: mw.load("mudd-pythia-test").for_head("lm"),
            "Spec(mudd-pythia-test: 4 blocks of width 64, head lm)",
        ),
        (
            lambda: mw.build("prenorm-test", program="decode"),
            "LayerGraph(program decode: 76 nodes, 3 blocks, inputs tokens, positions, cache)",
        ),
        (
            lambda: mw.build("beit3-test", head="retrieval"),
            "LayerGraph(program loss: 95 nodes, 4 blocks, inputs image, text, text_padding)",
        ),
        (
            lambda: LayerGraph(name="new", params={}),
            "LayerGraph(program new: 0 nodes, 0 blocks, inputs none)",
        ),
        (
            lambda: mw.compile("prenorm-test").programs,
            "Programs(forward, loss, prefill, decode)",
        ),
    ],
    ids=["spec", "spec of a head", "decode", "passes", "empty", "programs"],
)
def test_shown_in_a_line(made: Callable[[], object], shown: str) -> None:
    assert repr(made()) == shown


def test_stages_show_what_is_made() -> None:
    stages = Stages(mw.load("mudd-pythia-test").for_head("lm"), Options())
    assert repr(stages) == "Stages(mudd-pythia-test, head lm: none made yet)"
    made = stages["loss"]
    assert repr(stages) == f"Stages(mudd-pythia-test, head lm: loss in {len(made)} stages)"
    assert repr(made[0]) == "Stage(built, nodes=124, fired=0)"
    assert (
        repr(next(s for s in made if s.name == "fuse_mix")) == "Stage(fuse_mix, nodes=95, fired=8)"
    )


def test_a_notebook_shows_a_graph_as_a_picture() -> None:
    graph = mw.build("mudd-pythia-test")
    assert graph._repr_svg_() == to_svg(graph)
    stages = Stages(mw.load("mudd-pythia-test").for_head("lm"), Options())
    assert "fused_mix" in str(stages["loss"][-1].graph._repr_svg_())


def test_a_graph_alone_shows_a_picture_too() -> None:
    """Whatever is imported first: a graph read from a file may come without `mw.build`."""
    code = (
        "from multiway.compiler.graph.layer_graph import INPUT, LayerGraph, Record\n"
        "graph = LayerGraph(name='new', params={})\n"
        "graph.adopt(Record(path='inputs.x', op=INPUT), {})\n"
        "assert graph._repr_svg_().startswith('<svg ')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
