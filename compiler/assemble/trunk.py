"""All blocks of a model: what each sublayer reads, and how its output joins what is there."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.parts import attention, ffn, residual
from multiway.compiler.assemble.parts import lanes as lane_parts
from multiway.compiler.assemble.parts import mix as mixes
from multiway.compiler.assemble.parts import norm as norms
from multiway.compiler.assemble.parts.experts import Ways
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.connections import Site

STREAMS = ("q", "k", "v", "x", "r")


def declare(declared: Declared) -> None:
    """The parameters of all blocks and of the output norm."""
    spec = declared.spec
    for site in spec.connections.sites:
        for name, mix in spec.wiring.mixes():
            mixes.declare(declared, name, mix, site)
        if (lanes := spec.wiring.lanes) is not None:
            lane_parts.declare(declared, lanes, site)
        if site.part in ("attention", "both"):
            attention.declare(declared, site, apart=spec.connections.split_norms(site))
        if site.part in ("ffn", "both"):
            ffn.declare(declared, site.layer)
        if site.part != "output":
            residual.declare(declared, site)
    norms.declare(declared, "output.norm", spec.output.norm)


class Trunk:
    """Builds the blocks and the output norm.

    `hidden` is the residual stream. With lanes it is what the last of their readers read.
    """

    def __init__(self, ways: Ways) -> None:
        self.ways, self.program, self.spec = ways, ways.program, ways.program.spec
        self.wiring, self.hidden = self.spec.wiring, ways.seq.hidden
        mixed = self.wiring.mixes()
        self.mixes = [mixes.MixState(self.program, name, mix) for name, mix in mixed]
        lanes = self.wiring.lanes
        self.lanes = lane_parts.LaneState(self.program, lanes) if lanes else None
        self.added: list[Value] = []  # by the sublayers of the block so far

    def run(self) -> Value:
        """What the model makes of the sequence, behind the output norm [B, T, D]."""
        self._open()
        *inner, last = self.spec.connections.sites
        following = dict(zip(inner, [*inner[1:], last], strict=True))
        for site in inner:
            self._sublayer(site, following[site])
        x = self._reads(last)["r"]
        self.program.name("wired", x)
        if (norm := self.spec.output.norm) is not None:
            x = norms.build(self.ways, "output.norm", norm, x)
        self.program.name("output", x)
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

            def value(x: Value) -> Value:
                return self._value(site, x)

            apart = self.spec.connections.split_norms(site)
            outputs.append(attention.build(self.ways, site, reads, value, apart=apart))
        if site.part != "attention":
            outputs.append(ffn.build(self.ways, site.layer, reads["x"]))
        self._join(site, following, reads["r"], outputs)

    # Reading

    def _reads(self, site: Site) -> dict[str, Value]:
        """What every stream of a sublayer is. The output reads r."""
        if self.lanes is not None:
            self.hidden = self.lanes.read(site, self.hidden)
        reads = dict.fromkeys(STREAMS, self.hidden)
        for mix in self.mixes:
            found = self.spec.connections.reading(mix.name, site)
            if found is not None and found.ways != ("value",):
                reads = _with(reads, mix.sums(site, found, reads))
        if site.part != "output":
            self._name_reads(site, reads)
        return reads

    def _name_reads(self, site: Site, reads: dict[str, Value]) -> None:
        path, apart = f"reads.{site.index}", len({reads[stream] for stream in "qkv"}) > 1
        if not apart or site.part == "ffn":
            self.program.name(path, reads["x" if site.part == "ffn" else "q"])
            return
        for stream in "qkv":
            self.program.name(f"{path}.{stream}", reads[stream])

    def _value(self, site: Site, x: Value) -> Value:
        """The projected value that a block uses, of the one that it made."""
        made = x
        for mix in self.mixes:
            if "value" not in mix.mix.streams:
                continue
            mix.values.append(made)
            found = self.spec.connections.reading(mix.name, site)
            if found is not None:
                x = mix.sums(site, found, {"value": x})["value"]
        return x

    # Joining

    def _join(self, site: Site, following: Site, old: Value, outputs: list[Value]) -> None:
        """Lets the outputs of a sublayer join what is there, and tells the mixes."""
        outputs = residual.scaled(self.program, site, outputs)
        if self._wants_change(site):
            y = residual.total(self.program, f"{site.path}.both", outputs)
            outputs = [y]
            self._change(site, y)
        self.program.name(f"outputs.{site.index}", outputs[-1])
        if self._wants_sum(site, following):
            self.hidden = residual.build(self.ways, site, old, outputs)
            if site.closes:
                self.program.name(f"hidden.{site.layer + 1}", self.hidden)
            for mix in self.mixes:
                mix.add_hidden(site, self.hidden)

    def _change(self, site: Site, y: Value) -> None:
        """Gives what a sublayer adds to those that read changes: lanes and mixes."""
        self.added.append(y)
        path = f"{site.block}.change"
        whole = residual.total(self.program, path, self.added) if self._sums(site) else y
        if self.lanes is not None and self.lanes.writes(site):
            self.lanes.write(site, y if self.lanes.lanes.at == "sublayer" else whole)
        for mix in self.mixes:
            mix.add_change(site, y, whole)

    def _wants_change(self, site: Site) -> bool:
        """Whether anything reads what a sublayer, or its block, adds."""
        return self.lanes is not None or any(mix.mix.of == "change" for mix in self.mixes)

    def _sums(self, site: Site) -> bool:
        """Whether a block ends here of which something reads all that it adds."""
        lanes = self.lanes is not None and self.lanes.lanes.at == "block"
        mixed = any(mix.mix.of == "change" and mix.mix.at == "block" for mix in self.mixes)
        return site.closes and (lanes or mixed)

    def _wants_sum(self, site: Site, following: Site) -> bool:
        """Whether the residual stream goes on: not into lanes, nor where a mix takes its place."""
        if self.lanes is not None:
            return self.lanes.lanes.at == "block" and not site.closes
        if len(self.mixes) != 1:
            return True
        mix = self.mixes[0].mix
        found = self.spec.connections.reading(self.mixes[0].name, following)
        return found is None or mix.of == "hidden" or not self._replaced(following)

    def _replaced(self, site: Site) -> bool:
        """Whether a site reads sums alone, and nothing of the residual stream."""
        mix = self.mixes[0].mix
        found = self.spec.connections.reading(self.mixes[0].name, site)
        return found is not None and "r" in found.ways and not mix.add and mix.generator is None


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
