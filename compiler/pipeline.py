"""The compiler, as a list: what happens to a layer graph between building and lowering.

Every pass is a pure function from graph to graph. Nothing here changes what a program computes;
the graph as built (`fuse=False`) stays the definition of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from multiway.compiler.assemble.build import build
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.graph.verify import VerificationError, verify
from multiway.compiler.matching.match import fuse, fusions
from multiway.compiler.passes.drop_dead import drop_dead
from multiway.compiler.passes.fold_norms import fold_norms
from multiway.compiler.passes.lay_out_history import lay_out_history
from multiway.compiler.passes.pack_weights import pack_weights
from multiway.compiler.passes.plan_memory import plan_memory
from multiway.compiler.passes.share_common import share_common
from multiway.compiler.passes.sink_segments import sink_segments
from multiway.specs.errors import MultiwayError, nearest, one_of
from multiway.specs.spec import Spec

Numerics = Literal["exact", "rounding", "approx"]
Kind = Literal["transform", "analysis"]
Mode = Literal["train", "inference"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may decide. Raises MultiwayError for a pass that there is not.

    mode: inference programs may hold folded weights, training programs keep every gradient.
    memory_budget: bytes that a training step may keep for its backward, at `sizes`.
    passes: further ones, each behind all of the pipeline or where its `before` says.
    """

    mode: Mode = "train"
    without: Sequence[str] = ()
    allow: Sequence[str] = ()
    memory_budget: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    passes: Sequence[Pass] = ()

    def __post_init__(self) -> None:
        names = [each.name for each in self.pipeline()]
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

    @property
    def plans_memory(self) -> bool:
        """Whether a memory budget has a meaning."""
        return self.mode == "train" and "plan_memory" not in self.without

    def pipeline(self) -> list[Pass]:
        """The passes in their order, those of the user among them. Raises MultiwayError."""
        found = list(PIPELINE)
        for each in self.passes:
            names = [one.name for one in found]
            if each.name in names:
                raise MultiwayError.one(
                    "duplicate-pass", f"two passes are called {each.name!r}", place="passes"
                )
            if each.before and each.before not in names:
                raise MultiwayError.one(
                    "unknown-pass",
                    f"{each.name!r} is to run before {each.before!r}, which there is not",
                    place="passes",
                    expected=one_of(names),
                    nearest=nearest(each.before, names),
                )
            found.insert(names.index(each.before) if each.before else len(found), each)
        return found


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass: what it does to a layer graph.

    numerics: exact: the same bits; rounding: the same formula, summed or multiplied in another
    order; approx: another formula, only with `--allow approx`.
    run: makes the graph, notes in the tally where and why, and may ask for the options.
    fuses: instead of it, the fused ops (compiler/fusions) that the pass puts in, in this order.
    kind: an `analysis` only looks: it gives back the graph it was given, and its numbers in the
    tally. only: the mode in which it runs. before: of a user's own pass, the one it stands before.
    fires_on: small models that tests see it in, as those of a fusion; of one that fuses, theirs.
    """

    name: str
    does: str
    run: Callable[[LayerGraph, Tally, Options], LayerGraph] | None = None
    fuses: tuple[str, ...] = ()
    numerics: Numerics = "exact"
    kind: Kind = "transform"
    only: Mode | None = None
    before: str = ""
    fires_on: tuple[str, ...] = ()

    def apply(self, graph: LayerGraph, tally: Tally, options: Options) -> LayerGraph:
        """The graph after this pass: the same one where there was nothing to do."""
        if self.run is not None:
            graph = self.run(graph, tally, options)
        for op in self.fuses:
            graph = fuse(graph, fusions()[op], tally, self.name)
        return graph


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one pass did to one program."""

    name: str
    graph: LayerGraph
    tally: Tally
    seconds: float

    def __repr__(self) -> str:
        return f"Stage({self.name}, nodes={len(self.graph)}, fired={len(self.tally.fired)})"


def plain(function: Callable[[LayerGraph, Tally], LayerGraph]) -> Callable[..., LayerGraph]:
    """A pass that asks for no options."""
    return lambda graph, tally, _: function(graph, tally)


PIPELINE: tuple[Pass, ...] = (
    # First the graph is made smaller, while every op still is the simplest one. Modalities are kept
    # apart where nothing looks across them: after this, a part's own ops stand in a row.
    Pass(
        name="sink_segments",
        does="keeps modalities apart until attention: no joining and cutting in between",
        numerics="rounding",
        run=plain(sink_segments),
        fires_on=("beit3-test",),
    ),
    Pass(
        name="drop_dead",
        does="drops what no output needs",
        numerics="exact",
        run=plain(drop_dead),
        fires_on=("beit3-test",),
    ),
    # Before equal nodes are shared: every part of experts has the copies that it spreads to itself.
    Pass(
        name="group_experts",
        does="asks an expert for the tokens that go to it, sorted by expert, and for no others",
        numerics="rounding",
        fuses=(
            "moe_affine",
            "moe_ffn",
            "moe_linear",
        ),
    ),
    # Norms without gains are equal more often, so this comes before equal nodes are shared.
    Pass(
        name="fold_norms",
        does="moves gains and biases of norms into the linears behind them",
        numerics="rounding",
        run=plain(fold_norms),
        fires_on=("pythia-test",),
        only="inference",
    ),
    Pass(
        name="share_common",
        does="computes equal nodes once",
        numerics="exact",
        run=plain(share_common),
        fires_on=("pythia-test",),
    ),
    # Then rows of ops become fused ones. The mix is first, because its norms stand before the
    # projections; which of them come first does not matter otherwise.
    Pass(
        name="fuse_mix",
        does="depth mix and the norms that read it in one pass over the history; its generator",
        numerics="rounding",
        fuses=(
            "fused_mix",
            "depth_attention",
            "token_weights",
        ),
    ),
    Pass(
        name="lay_out_history",
        does="tells each list of hiddens how long it gets, so that one buffer holds them all",
        numerics="exact",
        run=plain(lay_out_history),
        fires_on=("mudd-pythia-test",),
    ),
    # A site of lanes takes the norms behind it, and has nothing in common with mixes over depth.
    Pass(
        name="fuse_lanes",
        does="parallel lanes from one sublayer to the next: mix, write, weights, read and norm",
        numerics="rounding",
        fuses=("fused_lanes",),
    ),
    Pass(
        name="fuse_projections",
        does="linears of one input become one matrix product",
        numerics="rounding",
        fuses=("packed_linear",),
    ),
    Pass(
        name="fuse_attention",
        does="heads, their norm and rotary positions in one pass, laid out for attention",
        numerics="rounding",
        fuses=("rotate_heads",),
    ),
    Pass(
        name="fuse_residual",
        does="residual additions inside the matrix products that are added",
        numerics="rounding",
        fuses=("linear_sum",),
    ),
    Pass(
        name="fuse_loss",
        does="vocabulary product and cross entropy in chunks: large logits are never whole",
        numerics="rounding",
        fuses=("linear_cross_entropy",),
    ),
    # When it is known what is computed: what backward keeps and what it computes again.
    Pass(
        name="plan_memory",
        does="chooses what backward makes again, so that the kept bytes fit --memory-budget",
        numerics="exact",
        run=lambda graph, tally, options: plan_memory(
            graph, tally, options.memory_budget, options.sizes
        ),
        fires_on=("pythia-test",),
        only="train",
    ),
    # Behind the plan, for which a product and its activation are two: one may be kept without the
    # other. It keeps as many bytes or fewer.
    Pass(
        name="fuse_activations",
        does="gelu of a linear and the norm behind it, and gates with what they gate, in one pass",
        numerics="rounding",
        fuses=(
            "gated_activation",
            "linear_activation",
        ),
    ),
    # Last: it marks the nodes that are there in the end.
    Pass(
        name="pack_weights",
        does="lays weights out once as the CPU's products read them, and keeps both",
        numerics="rounding",
        run=plain(pack_weights),
        fires_on=("pythia-test",),
        only="inference",
    ),
)

GONE = {
    "group_products": "0.1.0 before its release",
    "place_hiddens": "0.1.0 before its release",
    "fuse_norms": "0.1.0 before its release",
}
"""Passes that went, with the last version that had each: an old `--without` is told so."""


def run(graph: LayerGraph, options: Options) -> list[Stage]:
    """Runs the pipeline. The last stage holds the graph that is lowered.

    Every stage is verified: edges, parameters, shapes. Raises VerificationError.
    """
    stages = [Stage(name="built", graph=graph, tally=Tally(), seconds=0.0)]
    for each in options.pipeline():
        if each.name in options.without or each.only not in (None, options.mode):
            continue
        if each.numerics == "approx" and "approx" not in options.allow:
            continue
        tally, start = Tally(), time.perf_counter()
        made = each.apply(stages[-1].graph, tally, options)
        seconds = time.perf_counter() - start
        if made is not stages[-1].graph:
            if each.kind == "analysis":
                raise VerificationError(f"{each.name} is an analysis, and changed the graph")
            verify(made)
        stages.append(Stage(name=each.name, graph=made, tally=tally, seconds=seconds))
    return stages


class Stages(dict[str, list[Stage]]):
    """The layer graphs of a spec's programs at every stage, made when first asked for. Without
    options there is one stage: the graph as built.
    """

    def __init__(self, spec: Spec, options: Options | None, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.spec, self.options, self.taps = spec, options, taps

    def __repr__(self) -> str:
        made = ", ".join(f"{name} in {len(stages)} stages" for name, stages in self.items())
        return f"Stages({self.spec.name}, head {self.spec.head_name}: {made or 'none made yet'})"

    def __missing__(self, name: str) -> list[Stage]:
        graph = build(self.spec, program=name, taps=self.taps)
        verify(graph)
        if self.options is None:
            self[name] = [Stage(name="built", graph=graph, tally=Tally(), seconds=0.0)]
        else:
            self[name] = run(graph, self.options)
        return self[name]
