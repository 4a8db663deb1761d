"""All blocks of a model: what each sublayer reads, and how its output joins what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multiway.compiler.assemble.hiddens import Hiddens
from multiway.compiler.assemble.parts.attention import Sublayers
from multiway.compiler.assemble.parts.lanes import LaneState
from multiway.compiler.assemble.parts.mix import MixState
from multiway.compiler.graph import Value
from multiway.specs.readings import Site, reading, sites, split_norms

if TYPE_CHECKING:
    from multiway.compiler.assemble.builder import Builder

STREAMS = ("q", "k", "v", "x", "r")


class Trunk:
    """Builds the blocks and the output norm.

    `hidden` is the residual stream. With lanes it is what the last of their readers read.
    """

    def __init__(self, builder: Builder, seq: Hiddens) -> None:
        self.builder, self.spec, self.seq = builder, builder.spec, seq
        self.wiring, self.hidden = builder.spec.wiring, seq.hidden
        self.sublayers = Sublayers(builder, seq)
        self.mixes = [MixState(builder, name, mix) for name, mix in self.wiring.mixes()]
        self.lanes = LaneState(builder, self.wiring.lanes) if self.wiring.lanes else None
        self.added: list[Value] = []  # by the sublayers of the block so far

    def run(self) -> Value:
        self._open()
        *inner, last = sites(self.spec)
        following = dict(zip(inner, [*inner[1:], last], strict=True))
        for site in inner:
            self._sublayer(site, following[site])
        x = self._reads(last)["r"]
        self.builder.name("wired", x)
        if (norm := self.spec.output.norm) is not None:
            x = self.builder.routing.norm("output.norm", norm, x, self.seq)
        self.builder.name("output", x)
        return x

    def _open(self) -> None:
        if self.lanes is not None:
            self.lanes.open(self.hidden)
        for mix in self.mixes:
            mix.add_source(self.hidden)

    def _sublayer(self, site: Site, following: Site) -> None:
        reads = self._reads(site)
        if site.opens:
            self.added = []
        outputs = []
        if site.part != "ffn":
            split = split_norms(self.spec, site)

            def value(x: Value) -> Value:
                return self._value(site, x)

            y = self.sublayers.attention(site.layer, reads, split=split, value=value)
            outputs.append(y)
        if site.part != "attention":
            outputs.append(self.sublayers.ffn(site.layer, reads["x"]))
        self._join(site, following, reads["r"], outputs)

    # Reading

    def _reads(self, site: Site) -> dict[str, Value]:
        """What every stream of a sublayer is. The output reads r."""
        if self.lanes is not None:
            self.hidden = self.lanes.read(site, self.hidden)
        reads = dict.fromkeys(STREAMS, self.hidden)
        for mix in self.mixes:
            found = reading(self.spec, mix.name, mix.mix, site)
            if found is not None and found.ways != ("value",):
                reads = _with(reads, mix.sums(site, found, reads))
        if site.part != "output":
            self._name_reads(site, reads)
        return reads

    def _name_reads(self, site: Site, reads: dict[str, Value]) -> None:
        path, apart = f"reads.{site.index}", len({reads[stream] for stream in "qkv"}) > 1
        if not apart or site.part == "ffn":
            self.builder.name(path, reads["x" if site.part == "ffn" else "q"])
            return
        for stream in "qkv":
            self.builder.name(f"{path}.{stream}", reads[stream])

    def _value(self, site: Site, x: Value) -> Value:
        """The projected value that a block uses, of the one that it made."""
        made = x
        for mix in self.mixes:
            if "value" not in mix.mix.streams:
                continue
            mix.values.append(made)
            found = reading(self.spec, mix.name, mix.mix, site)
            if found is not None:
                x = mix.sums(site, found, {"value": x})["value"]
        return x

    # Joining

    def _join(self, site: Site, following: Site, old: Value, outputs: list[Value]) -> None:
        """Lets the outputs of a sublayer join what is there, and tells the mixes."""
        outputs = [self._gained(site, y, i) for i, y in enumerate(outputs)]
        if self._wants_change(site):
            y = self._sum(f"{site.path}.both", outputs)
            outputs = [y]
            self.builder.name(f"outputs.{site.index}", y)
            self.added.append(y)
            whole = self._sum(f"{site.block}.change", self.added) if self._sums(site) else y
            if self.lanes is not None and self.lanes.writes(site):
                self.lanes.write(site, y if self.lanes.lanes.at == "sublayer" else whole)
            for mix in self.mixes:
                mix.add_change(site, y, whole)
        else:
            self.builder.name(f"outputs.{site.index}", outputs[-1])
        if self._wants_sum(site, following):
            self.hidden = self._added(site, old, outputs)
            if site.closes:
                self.builder.name(f"hidden.{site.layer + 1}", self.hidden)
            for mix in self.mixes:
                mix.add_hidden(site, self.hidden)

    def _wants_change(self, site: Site) -> bool:
        """Whether anything reads what a sublayer, or its block, adds."""
        return self.lanes is not None or any(mix.mix.of == "change" for mix in self.mixes)

    def _sums(self, site: Site) -> bool:
        """Whether a block ends here of which something reads all that it adds."""
        lanes = self.lanes is not None and self.lanes.lanes.at == "block"
        mixes = any(mix.mix.of == "change" and mix.mix.at == "block" for mix in self.mixes)
        return site.closes and (lanes or mixes)

    def _wants_sum(self, site: Site, following: Site) -> bool:
        """Whether the residual stream goes on: not into lanes, nor where a mix takes its place."""
        if self.lanes is not None:
            return self.lanes.lanes.at == "block" and not site.closes
        if len(self.mixes) != 1:
            return True
        mix = self.mixes[0].mix
        found = reading(self.spec, self.mixes[0].name, mix, following)
        return found is None or mix.of == "hidden" or not self._replaced(following)

    def _replaced(self, site: Site) -> bool:
        """Whether a site reads sums alone, and nothing of the residual stream."""
        mix = self.mixes[0].mix
        found = reading(self.spec, self.mixes[0].name, mix, site)
        return found is not None and "r" in found.ways and not mix.add and mix.generator is None

    def _sum(self, path: str, values: list[Value]) -> Value:
        first, *rest = values
        for value in rest:
            first = self.builder.node(path, "add", {"a": first, "b": value})
        return first

    def _gained(self, site: Site, y: Value, part: int) -> Value:
        gain = self.wiring.residual.gain if self.wiring.residual else None
        if gain is None:
            return y
        op = "scale" if gain.over == "sublayer" else "scale_channels"
        base = f"{site.path}.residual"
        path = f"{base}.scaled" if part == 0 else f"{base}.scaled.{part}"
        params = {"factor": f"{base}.gain"}
        return self.builder.node(path, op, {"x": y}, params=params, part=gain)

    def _added(self, site: Site, old: Value, outputs: list[Value]) -> Value:
        """The residual stream behind a sublayer."""
        residual, build = self.wiring.residual, self.builder
        path = f"{site.block}.hidden" if site.closes else f"{site.path}.add"
        if residual is None or not (residual.keep or residual.balance or residual.low_rank):
            for y in outputs[:-1]:  # of a parallel block: the stream takes one after the other
                old = build.node(f"{site.block}.attention.add", "add", {"a": old, "b": y})
            given = {"a": old, "b": outputs[-1]}
            new = build.node(path, "add", given)
        else:
            new = self._weighed(site, path, old, self._sum(f"{site.path}.both", outputs))
        if "sum" not in self.wiring.norms:
            return new
        block = self.spec.blocks[site.layer]
        own = {"attention": block.attention.norm, "ffn": block.ffn.norm}.get(site.part)
        norm = own or block.norm
        return build.routing.norm(f"{site.path}.sum_norm", norm, new, self.seq, block.norm)

    def _weighed(self, site: Site, path: str, old: Value, y: Value) -> Value:
        """b (keep h + h A B) + a y."""
        residual, build, base = self.wiring.residual, self.builder, f"{site.path}.residual"
        assert residual is not None
        keep = residual.keep.number(layer=site.layer) if residual.keep else None
        if (low := residual.low_rank) is not None:
            z = build.linear(f"{base}.down", old, part=low)
            z = build.linear(f"{base}.up", z, part=low)
            given = {"a": old, "b": z}
            if keep is None:
                old = build.node(f"{base}.kept", "add", given, part=low)
            else:
                factor = {"factor": keep}
                old = build.node(f"{base}.kept", "weighted_add", given, attrs=factor, part=low)
                keep = None
        if residual.balance:
            params = {"balance": f"{base}.balance"}
            given = {"a": y, "b": old}
            return build.node(path, "balanced_add", given, params=params, part=residual)
        given = {"a": old, "b": y}
        if keep is None:
            return build.node(path, "add", given, part=residual)
        return build.node(path, "weighted_add", given, attrs={"factor": keep}, part=residual)


def _with(reads: dict[str, Value], sums: dict[str, Value]) -> dict[str, Value]:
    """The streams with mixed ones in their places. What was not told apart from r, or of q, k and v
    from x, goes with it."""
    found = dict(reads)
    for wide in ("r", "x"):
        if wide in sums:
            for stream in STREAMS:
                if found[stream] == found[wide] and (wide == "r" or stream != "r"):
                    found[stream] = sums[wide]
    return {**found, **sums}
