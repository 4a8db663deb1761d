"""Mixes over depth: the sources that they read, and their sums."""

from __future__ import annotations

from collections.abc import Mapping

from multiway.compiler.assemble.parameters import Declared, initial_or
from multiway.compiler.assemble.parts import depth_attention, mix_weights, plain_norm
from multiway.compiler.assemble.program import Program, join
from multiway.compiler.graph.init import ZEROS
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.connections import Reading, Site
from multiway.specs.language.wiring import Mix


def declare(declared: Declared, name: str, mix: Mix, site: Site) -> None:
    """What a site reads by a mix; before the first site, the norms of all its sources."""
    spec = declared.spec
    if mix.source_norm is not None and site.index == 0:
        for source in spec.connections.sources(name):
            path = _source_norm(name, source)
            plain_norm.declare(declared, path, mix.source_norm, width=spec.width)
    found = spec.connections.reading(name, site)
    if found is None:
        return
    mix_weights.declare(declared, mix, found)
    if mix.router is not None:
        depth_attention.declare(declared, mix.router, found)
    for way in found.ways:
        if mix.gate is not None:
            init = initial_or(mix.gate.init, (1,), ZEROS)
            declared.add(f"{found.path}.gate.{way}", (1,), init, mix.gate)
        if mix.sum_norm is not None and way in mix.sum_norm.streams:
            path = f"{found.path}.sum_norm.{way}"
            plain_norm.declare(declared, path, mix.sum_norm, width=spec.width)


def _source_norm(name: str, source: int) -> str:
    """The path of the norm of a source of a mix."""
    prefix = "" if name == "mix" else f"{name}."
    return f"{prefix}history.{source}.norm"


class MixState:
    """One mix while a program is built: the sources so far, and the lists that hold them.

    Sources wait until a reader needs them. Those that a dilation tells apart stand in lists of
    their own, so that a reader takes a whole list.
    """

    def __init__(self, program: Program, name: str, mix: Mix) -> None:
        self.program, self.name, self.mix = program, name, mix
        self.sources: list[Value] = []
        self.values: list[Value] = []  # projected ones, by block
        self.newest: Value | None = None  # hidden
        self.read = set(program.spec.connections.sources(name))
        self.lists: dict[int, Value] = {}  # by the number of a source, modulo the dilation
        self.listed = 0  # sources that are in a list
        self.group: Value | None = None  # changes of an unfinished group
        self.grouped = 0

    # Sources

    def add_source(self, x: Value) -> None:
        """The next source. The first is the embedding, which is the first hidden too."""
        self.sources.append(x)
        if self.newest is None:
            self.newest = x

    def add_hidden(self, site: Site, hidden: Value) -> None:
        """The residual stream behind a sublayer."""
        self.newest = hidden
        if self.mix.of == "hidden" and (self.mix.at == "sublayer" or site.closes):
            self.add_source(hidden)

    def add_change(self, site: Site, y: Value, whole: Value) -> None:
        """y: what a sublayer adds. whole: what its block has added by then."""
        if self.mix.of != "change" or not (self.mix.at == "sublayer" or site.closes):
            return
        change = y if self.mix.at == "sublayer" else whole
        if self.group is not None:
            given = {"a": self.group, "b": change}
            path = self._below(site.path, "group")
            change = self.program.node(path, "add", given, part=self.mix)
        self.group, self.grouped = change, self.grouped + 1
        if self.grouped == self.mix.group:
            self.add_source(change)
            self.group, self.grouped = None, 0

    def _listed(self, found: Reading) -> list[Value]:
        """The sources that a mix names one by one."""
        sources = self.values if "value" in self.mix.streams else self.sources
        return [sources[i] for i in found.sources]

    def _history(self, site: Site, found: Reading) -> Value:
        """The list of sources that a reader takes."""
        if "value" in self.mix.streams or self.mix.sources:
            parts = self._listed(found)
            attrs = {"count": len(parts)}
            path = f"{found.path}.sources"
            return self.program.node(path, "collect", {"parts": parts}, attrs=attrs, part=self.mix)
        for number in range(self.listed, len(self.sources)):
            if number in self.read:
                self._append(site, number)
        self.listed = len(self.sources)
        history = self.lists[found.sources[-1] % self.mix.dilation if self.group is None else 0]
        if self.mix.partial and self.group is not None:
            path = f"{self._list_path(site)}.partial"
            path = f"{path}.{found.index}" if self.mix.at == "block" else path
            x = self._normed(len(self.sources), self.group, f"{path}.norm")
            given = {"history": history, "x": x}
            return self.program.node(path, "append", given)
        return history

    def _list_path(self, site: Site) -> str:
        """Lists of blocks stand outside of blocks, so that blocks are alike."""
        return self._below(site.path if self.mix.at == "sublayer" else "", "history")

    def _below(self, path: str, name: str) -> str:
        """A path for nodes of this mix; those of the first have no name in it."""
        return join(path, name if self.name == "mix" else f"{self.name}.{name}")

    def _append(self, site: Site, number: int) -> None:
        rest = number % self.mix.dilation
        given = {"x": self._normed(number, self.sources[number])}
        if rest in self.lists:
            given["history"] = self.lists[rest]
        path = f"{self._list_path(site)}.{number}"
        self.lists[rest] = self.program.node(path, "append", given)

    def _normed(self, number: int, x: Value, path: str = "") -> Value:
        """A source behind its norm. `path`: of the node, where it is not that of its parameters."""
        if self.mix.source_norm is None:
            return x
        params = _source_norm(self.name, number)
        norm = self.mix.source_norm
        return plain_norm.build(self.program, path or params, norm, x, params=params)

    # Sums

    def sums(self, site: Site, found: Reading, reads: Mapping[str, Value]) -> dict[str, Value]:
        """The mixed streams. `reads`: what they would be otherwise."""
        if self._is_one(found):
            mixed = self._listed(found) * len(found.ways)
        else:
            mixed = self._mixed(site, found)
        named = {}
        for way, value in zip(found.ways, mixed, strict=True):
            named[way] = self._finished(found, way, value, reads[way])
            if self.name == "mix":
                self.program.name(f"streams.{found.index - 1}.{way}", named[way])
        return named

    def _is_one(self, found: Reading) -> bool:
        """Whether the sum is one source as it is: named alone, with a fixed weight of 1."""
        mix = self.mix
        alone = len(found.sources) == 1 and bool(mix.sources)
        return alone and mix.fixed is not None and mix.fixed.number(sources=1) == 1

    def _mixed(self, site: Site, found: Reading) -> list[Value]:
        """The sums of a reader, one for each of its ways."""
        program, name, mix = self.program, self.name, self.mix
        history = self._history(site, found)
        if mix.router is not None:
            return depth_attention.build(program, name, mix, found, history)
        assert self.newest is not None
        weights = mix_weights.build(program, name, mix, found, self.newest)
        given = {"history": history, "weights": weights}
        return program.nodes(f"{found.path}.sum", "mix", given, part=mix)

    def _finished(self, found: Reading, way: str, x: Value, base: Value) -> Value:
        """A sum with its norm, its gate, and what it is added to."""
        program, mix = self.program, self.mix
        if mix.sum_norm is not None and way in mix.sum_norm.streams:
            x = plain_norm.build(program, f"{found.path}.sum_norm.{way}", mix.sum_norm, x)
        if mix.gate is not None:
            params = {"factor": f"{found.path}.gate.{way}"}
            path = f"{found.path}.gated.{way}"
            x = program.node(path, "scale", {"x": x}, params=params, part=mix.gate)
        if mix.add:
            x = program.node(f"{found.path}.add.{way}", "add", {"a": base, "b": x}, part=mix)
        return x
