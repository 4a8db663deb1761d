"""The compiler, as a list: what happens to a layer graph between building and lowering.

Every pass is a pure function from graph to graph. Nothing here changes what a program computes;
the graph as built (`fuse=False`) stays the definition of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from multiway.compiler.fusion import Tally, fuse, fusions
from multiway.compiler.graph import LayerGraph
from multiway.compiler.passes.drop_dead import drop_dead
from multiway.compiler.passes.fold_norms import fold_norms
from multiway.compiler.passes.lay_out_history import lay_out_history
from multiway.compiler.passes.pack_weights import pack_weights
from multiway.compiler.passes.plan_memory import plan_memory
from multiway.compiler.passes.share_common import share_common
from multiway.compiler.passes.sink_segments import sink_segments
from multiway.compiler.verify import verify
from multiway.specs.errors import MultiwayError, nearest, one_of

Numerics = Literal["exact", "rounding", "approx"]
Mode = Literal["train", "inference"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may decide. Raises MultiwayError for a pass that there is not.

    mode: inference programs may hold folded weights, training programs keep every gradient.
    memory_budget: bytes that a training step may keep for its backward, at `sizes`.
    """

    mode: Mode = "train"
    without: Sequence[str] = ()
    allow: Sequence[str] = ()
    memory_budget: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [each.name for each in PIPELINE]
        for name in self.without:
            if name in GONE:
                raise MultiwayError.one(
                    "unknown-pass",
                    f"there is no pass {name!r} any more: {GONE[name]} had it",
                    place="--without",
                )
            if name not in names:
                raise MultiwayError.one(
                    "unknown-pass",
                    f"there is no pass {name!r}",
                    place="--without",
                    expected=one_of(names),
                    nearest=nearest(name, names),
                )
        for name in self.allow:
            if name != "approx":
                raise MultiwayError.one(
                    "unknown-numerics",
                    f"{name!r} cannot be allowed",
                    place="--allow",
                    expected="approx",
                )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass. exact: the same bits; rounding: the same formula, summed or multiplied in another
    order; approx: another formula, only with `--allow approx`."""

    name: str
    does: str
    numerics: Numerics
    run: Callable[[LayerGraph, Tally, Options], LayerGraph]
    only: Mode | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one pass did to one program."""

    name: str
    graph: LayerGraph
    tally: Tally
    seconds: float


def fuse_mix(graph: LayerGraph, tally: Tally, options: Options) -> LayerGraph:
    """The fusions of the mix; and lists of hiddens are told how long they get."""
    fused = fusing("fuse_mix")(graph, tally, options)
    return lay_out_history(fused) if fused is not graph else graph


def plain(function: Callable[[LayerGraph, Tally], LayerGraph]) -> Callable[..., LayerGraph]:
    """A pass that asks for no options."""
    return lambda graph, tally, _: function(graph, tally)


def fusing(name: str) -> Callable[[LayerGraph, Tally, Options], LayerGraph]:
    """A pass that puts fused ops in: every fusion (compiler/fusions) that names it."""

    def run(graph: LayerGraph, tally: Tally, _: Options) -> LayerGraph:
        for fusion in fusions():
            if fusion.by == name:
                graph = fuse(graph, fusion, tally)
        return graph

    return run


PIPELINE: tuple[Pass, ...] = (
    # First the graph is made smaller, while every op still is the simplest one. Modalities are kept
    # apart where nothing looks across them: after this, a part's own ops stand in a row.
    Pass(
        name="sink_segments",
        does="keeps modalities apart until attention: no joining and cutting in between",
        numerics="rounding",
        run=plain(sink_segments),
    ),
    Pass(
        name="drop_dead",
        does="drops what no output needs",
        numerics="exact",
        run=plain(drop_dead),
    ),
    # Before equal nodes are shared: every part of experts has the copies that it spreads to itself.
    Pass(
        name="group_experts",
        does="asks an expert for the tokens that go to it, sorted by expert, and for no others",
        numerics="rounding",
        run=fusing("group_experts"),
    ),
    # Norms without gains are equal more often, so this comes before equal nodes are shared.
    Pass(
        name="fold_norms",
        does="moves gains and biases of norms into the linears behind them",
        numerics="rounding",
        run=plain(fold_norms),
        only="inference",
    ),
    Pass(
        name="share_common",
        does="computes equal nodes once",
        numerics="exact",
        run=plain(share_common),
    ),
    # Then rows of ops become fused ones. The mix is first, because its norms stand before the
    # projections; which of them come first does not matter otherwise.
    Pass(
        name="fuse_mix",
        does="depth mix and the norms that read it in one pass over the history; its generator",
        numerics="rounding",
        run=fuse_mix,
    ),
    # A site of lanes takes the norms behind it, so this comes before norms are paired, and has
    # nothing in common with mixes over depth.
    Pass(
        name="fuse_lanes",
        does="parallel lanes from one sublayer to the next: mix, write, weights, read and norm",
        numerics="rounding",
        run=fusing("fuse_lanes"),
    ),
    Pass(
        name="fuse_norms",
        does="two norms of one input in one pass over it",
        numerics="rounding",
        run=fusing("fuse_norms"),
    ),
    Pass(
        name="fuse_projections",
        does="linears of one input become one matrix product",
        numerics="rounding",
        run=fusing("fuse_projections"),
    ),
    Pass(
        name="fuse_attention",
        does="heads, their norm and rotary positions in one pass, laid out for attention",
        numerics="rounding",
        run=fusing("fuse_attention"),
    ),
    Pass(
        name="fuse_residual",
        does="residual additions inside the matrix products that are added",
        numerics="rounding",
        run=fusing("fuse_residual"),
    ),
    Pass(
        name="fuse_loss",
        does="vocabulary product and cross entropy in chunks: large logits are never whole",
        numerics="rounding",
        run=fusing("fuse_loss"),
    ),
    # When it is known what is computed: what backward keeps and what it computes again.
    Pass(
        name="plan_memory",
        does="chooses what backward makes again, so that the kept bytes fit --memory-budget",
        numerics="exact",
        run=lambda graph, tally, options: plan_memory(
            graph, tally, options.memory_budget, options.sizes
        ),
        only="train",
    ),
    # Behind the plan, for which a product and its activation are two: one may be kept without the
    # other. It keeps as many bytes or fewer.
    Pass(
        name="fuse_activations",
        does="gelu of a linear and the norm behind it, and gates with what they gate, in one pass",
        numerics="rounding",
        run=fusing("fuse_activations"),
    ),
    # Last: it marks the nodes that are there in the end.
    Pass(
        name="pack_weights",
        does="lays weights out once as the CPU's products read them, and keeps both",
        numerics="rounding",
        run=plain(pack_weights),
        only="inference",
    ),
)

GONE = {
    "group_products": "0.1.0 before its release",
    "place_hiddens": "0.1.0 before its release",
}
"""Passes that went, with the last version that had each: an old `--without` is told so."""


def run(graph: LayerGraph, options: Options) -> list[Stage]:
    """Runs the pipeline. The last stage holds the graph that is lowered.

    Every stage is verified: edges, parameters, shapes. Raises VerificationError.
    """
    stages = [Stage(name="built", graph=graph, tally=Tally(), seconds=0.0)]
    for each in PIPELINE:
        if each.name in options.without or each.only not in (None, options.mode):
            continue
        if each.numerics == "approx" and "approx" not in options.allow:
            continue
        tally, start = Tally(), time.perf_counter()
        made = each.run(stages[-1].graph, tally, options)
        seconds = time.perf_counter() - start
        if made is not stages[-1].graph:
            verify(made)
        stages.append(Stage(name=each.name, graph=made, tally=tally, seconds=seconds))
    return stages
