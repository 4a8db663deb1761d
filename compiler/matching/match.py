"""Fusions: where a fused op may stand in a graph, and its putting there.

The matcher of a fusion only proposes. Whether the fused op computes what it replaces is checked
here, against the small graph that its reference is made of, node by node; so is that no value that
would vanish has another reader.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from multiway.compiler.graph.composed import Ref, SmallGraph, trace
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.rewrite import Rewriter, Tally
from multiway.compiler.graph.verify import VerificationError
from multiway.specs import plugins


@dataclass(frozen=True, kw_only=True)
class Match:
    """A proposal: this record with these arguments gives `outputs`, in this order.

    nodes: what is replaced. at: the node of them whose place the fused one takes.
    """

    at: str
    record: Record
    arguments: Mapping[str, Value | Sequence[Value]]
    outputs: tuple[Value, ...]
    nodes: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A fused op's place in graphs. `match` is asked for every node whose op is in `roots`, and for
    every norm where `norms` says so.

    fires_on: small models that tests see it in, each `ENTRY` of the zoo, `ENTRY+WIRING` for one
    with another wiring, or `ENTRY/ROUTE` for one with experts in all of its parts.
    """

    op: str
    match: Callable[[LayerGraph, Record], Match | None]
    fires_on: tuple[str, ...]
    roots: tuple[str, ...] = ()
    norms: bool = False

    def starts_at(self, record: Record) -> bool:
        return record.op in self.roots or (self.norms and record.is_norm)


def fusions() -> Mapping[str, Fusion]:
    """Every fusion by the op that it puts in. Which pass puts it in, and when, says PIPELINE; of
    a plugin's fusion a pass of its own."""
    return _fusions(plugins.modules())


@functools.cache
def _fusions(_: tuple[ModuleType, ...]) -> Mapping[str, Fusion]:
    package = importlib.import_module("multiway.compiler.fusions")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    found = [importlib.import_module(f"multiway.compiler.fusions.{name}").FUSION for name in names]
    found += plugins.parts("FUSION", Fusion)
    return {each.op: each for each in found}


def fuse(graph: LayerGraph, fusion: Fusion, tally: Tally, by: str) -> LayerGraph:
    """The graph with every match of a fusion replaced. by: the pass that does so."""
    found: dict[str, Match] = {}
    gone: set[str] = set()
    for record in graph:
        if record.path in gone or not fusion.starts_at(record):
            continue
        match = fusion.match(graph, record)
        if match is None or not match.outputs or match.nodes & gone:
            continue
        if reason := shared(graph, match):
            tally.refused[record.path] = reason
            continue
        check(graph, match)
        found[match.at] = match
        gone |= match.nodes
    tally.fired += [match.record.path for match in found.values()]
    return replaced(graph, found, by) if found else graph


def shared(graph: LayerGraph, match: Match) -> str:
    """Why the nodes of a match cannot go: a value inside that is read outside, or nothing."""
    for path in sorted(match.nodes):
        for port in sorted(graph.ports_read(path)):
            value = Value(path, port)
            if value in match.outputs:
                continue
            for reader, _ in graph.readers(value):
                if reader not in match.nodes:
                    return f"{path} is also read by {reader}"
    return ""


def check(graph: LayerGraph, match: Match) -> None:
    """Raises VerificationError unless the fused op's small graph is what it replaces."""
    record = match.record
    types = graph.argument_types(record, match.arguments)
    small = trace(registry()[record.op], types, record.attrs)
    given: dict[str, Value | str] = {}
    for name, value in match.arguments.items():
        if isinstance(value, Value):
            given[name] = value
        else:
            given |= {f"{name}.{i}": each for i, each in enumerate(value)}
    _Lockstep(graph, small, {**given, **record.params}, match).compare()


class _Lockstep:
    """Walks a small graph and the nodes it stands for together, upwards from the outputs."""

    def __init__(
        self, graph: LayerGraph, small: SmallGraph, given: Mapping[str, Value | str], match: Match
    ) -> None:
        self.graph, self.small, self.given, self.match = graph, small, given, match
        self.met: dict[int, str] = {}

    def compare(self) -> None:
        self._require(len(self.small.outputs) == len(self.match.outputs), "another number of ports")
        for ref, value in zip(self.small.outputs, self.match.outputs, strict=True):
            self._same(ref, value)
        left = self.match.nodes - set(self.met.values())
        self._require(not left, f"{sorted(left)} would be lost")

    def _same(self, ref: Ref, value: Value | str) -> None:
        if ref.step < 0:
            self._require(self.given.get(ref.name) == value, f"{ref.name} is not {value}")
            return
        self._require(isinstance(value, Value) and value.port == ref.port, f"not port {ref.port}")
        assert isinstance(value, Value)
        if ref.step in self.met:
            self._require(self.met[ref.step] == value.path, f"{value.path} is met twice")
            return
        self.met[ref.step] = value.path
        step, record = self.small.steps[ref.step], self.graph.record(value.path)
        self._require(value.path in self.match.nodes, f"{value.path} is not of the match")
        full = step.op == record.op and registry()[record.op].full_attrs(record.attrs)
        same = full == dict(step.attrs)
        self._require(same, f"{value.path} is no {step.op} with {dict(step.attrs)}")
        reads: dict[str, Value | str] = {**self.graph.sources(value.path), **record.params}
        self._require(reads.keys() == step.arguments.keys(), f"{value.path} reads {set(reads)}")
        for name, inner in step.arguments.items():
            self._same(inner, reads[name])

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            record = self.match.record
            raise VerificationError(f"{record.op} at {record.path} is not what is there: {message}")


def replaced(graph: LayerGraph, matches: Mapping[str, Match], by: str) -> LayerGraph:
    """The graph with matches put in the places of their nodes."""
    gone = {path for match in matches.values() for path in match.nodes}
    rewriter = Rewriter(graph)
    for record in graph:
        if (match := matches.get(record.path)) is not None:
            before = [p for path in match.nodes for p in graph.record(path).passes]
            rewriter.add(match.record, match.arguments, by, before)
            for port, value in enumerate(match.outputs):
                rewriter.now[value] = Value(match.record.path, port)
        elif record.path not in gone:
            rewriter.keep(record)
    return rewriter.finish()


def params_list(role: str, paths: Sequence[str]) -> dict[str, str]:
    """Parameters of a role that takes many: `gains.0`, `gains.1`."""
    return {f"{role}.{i}": path for i, path in enumerate(paths)}


def form(graph: LayerGraph, record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a node reads by name: as parameters, and as values. Weights are values where norms are
    folded into them.
    """
    return tuple(record.params), tuple(sorted(graph.sources(record.path)))


def gathered(
    graph: LayerGraph, records: Sequence[Record], roles: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Sequence[Value]]]:
    """Parameters and arguments of a node that takes lists of what nodes of one form read.

    roles: names at those to names of lists, such as weight to weights; those not read are left out.
    """
    params: dict[str, str] = {}
    arguments: dict[str, Sequence[Value]] = {}
    for role, many in roles.items():
        if role in records[0].params:
            params |= params_list(many, [record.params[role] for record in records])
        elif role in graph.sources(records[0].path):
            arguments[many] = [graph.sources(record.path)[role] for record in records]
    return params, arguments


def source(graph: LayerGraph, path: str, argument: str) -> Record | None:
    """The node that an argument comes from."""
    found: Any = graph.arguments(path).get(argument)
    return graph.record(found.path) if isinstance(found, Value) else None
