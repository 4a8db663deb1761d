"""Mixes: the sources that they read, their weights, their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from multiway.compiler.assemble.parameters import join
from multiway.compiler.assemble.wiring_parameters import generator_norm, history_norm, router_path
from multiway.compiler.graph import Value
from multiway.specs.readings import Reading, Site, read_sources
from multiway.specs.wiring import Generator, Mix, Router

if TYPE_CHECKING:
    from multiway.compiler.assemble.builder import Builder


class MixState:
    """One mix while a program is built: the sources so far, and the lists that hold them.

    Sources wait until a reader needs them. Those that a dilation tells apart stand in lists of
    their own, so that a reader takes a whole list.
    """

    def __init__(self, builder: Builder, name: str, mix: Mix) -> None:
        self.builder, self.spec, self.name, self.mix = builder, builder.spec, name, mix
        self.sources: list[Value] = []
        self.values: list[Value] = []  # projected ones, by block
        self.newest: Value | None = None  # hidden
        self.read = set(read_sources(self.spec, name, mix))
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
            change = self.builder.node(path, "add", given, part=self.mix)
        self.group, self.grouped = change, self.grouped + 1
        if self.grouped == self.mix.group:
            self.add_source(change)
            self.group, self.grouped = None, 0

    def _history(self, site: Site, found: Reading) -> Value:
        """The list of sources that a reader takes."""
        if "value" in self.mix.streams or self.mix.sources:
            sources = self.values if "value" in self.mix.streams else self.sources
            parts = [sources[i] for i in found.sources]
            attrs = {"count": len(parts)}
            path = f"{found.path}.sources"
            return self.builder.node(path, "collect", {"parts": parts}, attrs=attrs, part=self.mix)
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
            return self.builder.node(path, "append", given)
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
        self.lists[rest] = self.builder.node(path, "append", given)

    def _normed(self, number: int, x: Value, path: str = "") -> Value:
        """A source behind its norm. `path`: of the node, where it is not that of its parameters."""
        if self.mix.source_norm is None:
            return x
        params = history_norm(self.name, number)
        return self.builder.norm(path or params, self.mix.source_norm, x, params=params)

    # Sums

    def sums(self, site: Site, found: Reading, reads: Mapping[str, Value]) -> dict[str, Value]:
        """The mixed streams. `reads`: what they would be otherwise."""
        history = self._history(site, found)
        if self.mix.router is not None:
            mixed = [self._routed(history, found, way, self.mix.router) for way in found.ways]
        else:
            given = {"history": history, "weights": self._weights(found)}
            mixed = self.builder.nodes(f"{found.path}.sum", "mix", given, part=self.mix)
        named = {}
        for way, value in zip(found.ways, mixed, strict=True):
            named[way] = self._finished(found, way, value, reads[way])
            if self.name == "mix":
                self.builder.name(f"streams.{found.index - 1}.{way}", named[way])
        return named

    def _finished(self, found: Reading, way: str, x: Value, base: Value) -> Value:
        """A sum with its norm, its gate, and what it is added to."""
        build, mix = self.builder, self.mix
        if mix.sum_norm is not None and way in mix.sum_norm.streams:
            x = build.norm(f"{found.path}.sum_norm.{way}", mix.sum_norm, x)
        if mix.gate is not None:
            params = {"factor": f"{found.path}.gate.{way}"}
            path = f"{found.path}.gated.{way}"
            x = build.node(path, "scale", {"x": x}, params=params, part=mix.gate)
        if mix.add:
            x = build.node(f"{found.path}.add.{way}", "add", {"a": base, "b": x}, part=mix)
        return x

    def _routed(self, history: Value, found: Reading, way: str, router: Router) -> Value:
        build, path = self.builder, router_path(found, way)
        default = self.spec.blocks[0].norm.eps
        eps = router.eps if router.eps is not None else default
        weights = build.node(
            path,
            "depth_router",
            {"history": history},
            attrs={"groups": router.groups, "eps": eps},
            part=router,
        )
        if self.name == "mix":
            build.name(f"weights.{found.index}", weights)
        op = "mix" if router.groups == 1 else "mix_groups"
        end = "" if len(found.ways) == 1 else f".{way}"
        given = {"history": history, "weights": weights}
        return build.node(f"{found.path}.sum{end}", op, given, part=self.mix)

    def _weights(self, found: Reading) -> Value:
        build, mix, path = self.builder, self.mix, found.path
        attrs = {"ways": len(found.ways)}
        if mix.fixed is not None:
            assert self.newest is not None
            sources = len(found.sources)
            made = {**attrs, "sources": sources, "value": mix.fixed.number(sources=sources)}
            x = {"x": self.newest}
            return build.node(f"{path}.weights", "fixed_weights", x, attrs=made, part=mix)
        static = {"static": f"{path}.static"} if mix.static is not None else {}
        if mix.static is not None and mix.static.complement:
            op = "complement_weights"
            return build.node(f"{path}.weights", op, {}, params=static, part=mix)
        given: dict[str, Value] = {}
        left_out = len(found.sources) < found.known
        if mix.static is not None and mix.static.columns == "all" and left_out:
            picked = {"columns": list(found.sources)}
            given["static"] = build.node(
                f"{path}.picked", "pick_columns", {}, attrs=picked, params=static, part=mix.static
            )
            static = {}
        if mix.generator is not None:
            given["dynamic"] = self._generator(path, mix.generator)
            if self.name == "mix":
                build.name(f"dynamic.{found.index - 1}", given["dynamic"])
        return build.node(
            f"{path}.weights", "depth_weights", given, attrs=attrs, params=static, part=mix
        )

    def _generator(self, path: str, generator: Generator) -> Value:
        build = self.builder
        assert self.newest is not None
        x = build.norm(f"{path}.norm", generator_norm(generator), self.newest)
        x = build.linear(f"{path}.hidden", x, part=generator)
        kind = {"kind": generator.activation}
        x = build.node(f"{path}.activation", "activation", {"x": x}, attrs=kind, part=generator)
        return build.linear(f"{path}.output", x, part=generator)
