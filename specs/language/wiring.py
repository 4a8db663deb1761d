"""The vocabulary of wirings: what sublayers read of everything before them, and how they write.

A named wiring is a file of specs/wirings that uses these words; no wiring has a name in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from multiway.specs.language.fields import Config, Count, Formula, Kinds, Real, key
from multiway.specs.language.parts import Activation, Initial, PlainNorm

Stream = Literal["q", "k", "v", "r", "x", "value"]
At = Literal["block", "sublayer"]


@dataclass(frozen=True, kw_only=True)
class Static(Config):
    """Learned mixing weights, the same for every token."""

    switch = True

    init: Initial | None = key("start of the [streams, sources] matrix; default: newest")
    columns: Literal["read", "all"] = key(
        "all: also a number for each source that is left out", default="read"
    )
    complement: bool = key(
        "two sources whose weights sum to 1: one learned number, that of the second", default=False
    )


@dataclass(frozen=True, kw_only=True)
class Generator(Config):
    """Mixing weights made from each token: norm, projection, activation, projection."""

    switch = True
    required = ("hidden",)

    norm: PlainNorm | None = key("norm of the newest hidden; default: rms_norm without weight")
    activation: Activation = key("between the two projections", default="gelu")
    hidden: Formula = key("hidden width; may use ways, sources and last")
    init: Initial | None = key("start of the second projection; default: zeros")


@dataclass(frozen=True, kw_only=True)
class Router(Config):
    """Mixing weights that are a softmax over the depth: a learned query meets every source."""

    switch = True

    groups: Count = key("groups of channels, each with weights of its own", default=1)
    eps: Real | None = key("of the RMS norm of the sources; default: that of block.norm")
    weight: bool = key("learned gain of that norm", default=True)


@dataclass(frozen=True, kw_only=True)
class SumNorm(PlainNorm):
    """A norm of the weighted sums."""

    streams: tuple[Stream, ...] = key("whose sums", default=("r",))


@dataclass(frozen=True, kw_only=True)
class Gate(Config):
    """A learned factor on a weighted sum."""

    switch = True

    init: Initial | None = key("its start; default: zeros")


@dataclass(frozen=True, kw_only=True)
class Mix(Config):
    """Weighted sums over earlier values, which stand for streams of a block or a sublayer."""

    required = ("streams",)

    streams: tuple[Stream, ...] = key(
        "what is mixed: inputs q, k, v, all inputs together (x), the residual (r), or the "
        "projected value",
        default=(),
    )
    at: At = key("who reads: every block, or every sublayer", default="block")
    of: Literal["hidden", "change"] = key(
        "what a source is: the residual stream behind a reader, or only what the reader added",
        default="hidden",
    )
    group: Count = key("changes: how many consecutive ones are summed into one source", default=1)
    partial: bool = key("changes: the sum of an unfinished group is a source too", default=True)
    period: Count = key(
        "only readers whose number is a multiple of it mix; and the output", default=1
    )
    dilation: Count = key("only sources whose distance is a multiple of this", default=1)
    where: Formula | None = key("the readers that mix: a test over layer; the output is depth")
    sources: tuple[Formula, ...] = key(
        "the sources one by one: numbers of blocks (of sublayers), embedding, newest", default=()
    )
    first: bool = key("whether the first reader, which has one source, mixes too", default=False)
    first_block: Literal["one_norm", "three_norms"] = key(
        "whether a block whose q, k and v are not mixed norms them apart", default="one_norm"
    )
    add: bool = key(
        "the sums are added to what a stream would read otherwise, instead of standing for it",
        default=False,
    )
    static: Static | None = key("learned weights for each stream and source")
    generator: Generator | None = key("weights made from each token, added to static ones")
    router: Router | None = key("a softmax over the sources")
    fixed: Formula | None = key("one number for every weight; may use sources")
    source_norm: PlainNorm | None = key("a norm of every source")
    sum_norm: SumNorm | None = key("a norm of the sums")
    gate: Gate | None = key("a learned factor on each sum")


@dataclass(frozen=True, kw_only=True)
class Gain(Config):
    """A learned factor on what a sublayer puts out."""

    short = "over"
    required = ("over",)

    over: Literal["sublayer", "channel"] = key("one number, or one a channel", default="channel")
    init: Initial | None = key("its start; default: ones")


@dataclass(frozen=True, kw_only=True)
class LowRank(Config):
    """A learned low-rank map of the residual stream, added to it."""

    required = ("rank",)

    rank: Count = key("its rank", default=1)


@dataclass(frozen=True, kw_only=True)
class Residual(Config):
    """How the output y of a sublayer joins the residual stream h: b (keep h + h A B) + a gain y."""

    keep: Formula | None = key("a fixed factor on h; default: 1")
    gain: Gain | None = key("a learned factor on y")
    balance: bool = key("(a, b) = 2 softmax of two learned numbers; else 1, 1", default=False)
    low_rank: LowRank | None = key("h A B, learned")

    def plain(self) -> bool:
        """Whether this is h + y."""
        return not (self.keep or self.gain or self.balance or self.low_rank)


@dataclass(frozen=True, kw_only=True)
class LaneDynamic(Config):
    """Weights of lanes that are made from each lane of each token."""

    switch = True

    norm: PlainNorm | None = key("norm of a lane; default: layer_norm, eps 1e-5")
    activation: Activation = key("behind the projections", default="tanh")
    scale: Real = key("start of the learned factors", default=0.01)


@dataclass(frozen=True, kw_only=True)
class Hyper(Config):
    """Weights of lanes as in Hyper-Connections: learned numbers, and what each lane adds."""

    kind: Literal["hyper"] = key("hyper", default="hyper")
    dynamic: LaneDynamic | None = key("numbers made from each token, added to the learned ones")


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Config):
    """Makes the mixing matrix of the lanes nearly doubly stochastic."""

    switch = True

    iterations: Count = key("passes over rows and columns", default=20)
    start: Literal["softmax", "exp"] = key(
        "softmax: rows through a softmax, plus eps, and the first pass does columns only; "
        "exp: exp of the numbers less their row's largest",
        default="softmax",
    )
    eps: Real = key("added to what is divided by, and to a softmax", default=1e-6)
    transpose: bool = key("new lane k sums over entries [k, j] instead of [j, k]", default=False)
    diagonal: Real = key("start of the bias on the diagonal", default=0.0)


@dataclass(frozen=True, kw_only=True)
class Manifold(Config):
    """Weights of lanes as in mHC: gates and a doubly stochastic matrix from all lanes together."""

    kind: Literal["manifold"] = key("manifold", default="manifold")
    norm: PlainNorm | None = key("norm of all lanes end to end; default: rms_norm, no weight")
    root: Literal["inside", "outside"] = key(
        "whether the eps of that norm is under its root, or added to the root", default="inside"
    )
    init: Initial | None = key("start of the projections; default: normal, std 0.02")
    scale: Real = key("start of the learned factors on the projections", default=0.01)
    eps: Real = key("added to the weights that read, and to those of the output", default=1e-6)
    write: Real = key("largest weight that writes", default=2.0)
    sinkhorn: Sinkhorn | None = key("the mixing matrix; default: 20 passes")


@dataclass(frozen=True, kw_only=True)
class Lanes(Config):
    """Parallel residual lanes that every sublayer reads, mixes and writes."""

    required: ClassVar[tuple[str, ...]] = ("count", "weights")

    count: Count = key("how many", default=1)
    split: bool = key("lanes are pieces of the width, instead of copies of it", default=False)
    at: At = key("who reads and writes: every block, or every sublayer", default="sublayer")
    weights: Annotated[Hyper | Manifold, Kinds(Hyper, Manifold)] | None = key(
        "the weights that read, mix and write"
    )
    output: Literal["sum", "weighted"] = key(
        "what becomes of copies in the end; weighted: learned gates (manifold)", default="sum"
    )


@dataclass(frozen=True, kw_only=True)
class Wiring(Config):
    """What sublayers read of everything before them, and how they write."""

    short = "use"

    use: str | None = key("a named wiring, or a .yaml file beside the spec")
    cite: tuple[str, ...] = key("the papers", default=())
    doc: str = key("a line on what it is", default="")
    norms: tuple[Literal["input", "output", "sum"], ...] = key(
        "where the norm of a sublayer stands: on what it reads, on what it puts out, on the sum",
        default=("input",),
    )
    residual: Residual | None = key("how outputs join the residual stream; default: added")
    mix: Mix | None = key("weighted sums over depth")
    edges: tuple[Mix, ...] = key("further mixes, each for some blocks", default=())
    lanes: Lanes | None = key("parallel residual lanes")
    init: dict[str, Initial] = key(
        "initial values by parameter path, under those of the spec", default={}
    )

    def mixes(self) -> tuple[tuple[str, Mix], ...]:
        """Every mix with the name its parameters stand under."""
        main = (("mix", self.mix),) if self.mix is not None else ()
        return (*main, *((f"edges.{i}", edge) for i, edge in enumerate(self.edges)))
