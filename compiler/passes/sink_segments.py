"""Keeps the segments of a joined sequence apart until something sees them together.

A sequence that is joined and cut again is copied twice for nothing. `concat` moves down and `split`
up through every op that treats each token for itself, until only keys and values of attention (and
whatever else looks across tokens) read the joined form. Attention is such an op in its queries,
where all of them see the same keys. Where segments are first cut behind the last attention, all had
the same weights until there, and a product of the whole is faster than those of its parts: nothing
sinks.

To join queries, too, takes as long (0.98 to 1.01 of a step: BEiT-3 base, 24 x 256 with two
segments) and 6 % more memory, and what the queries of a segment that nobody reads lead to would be
computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from multiway.compiler.graph.layer_graph import INPUT, OUTPUT, LayerGraph, Record, Value
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.rewrite import Rewriter, Tally
from multiway.compiler.graph.types import Tensor

PASS = "sink_segments"


def sink_segments(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with segments kept apart; the same graph where it joins none again."""
    if not _joins_again(graph):
        return graph
    made = _Sinking(graph, tally).run()
    return made if tally.fired else graph


@dataclass(frozen=True)
class _Segments:
    """The segments of one pass over the trunk: their lengths, and names for the nodes of each."""

    sizes: Value
    labels: tuple[str, ...]


@dataclass
class _Sinking:
    graph: LayerGraph
    tally: Tally
    parts: dict[Value, list[Value]] = field(default_factory=dict)  # old value to new ones
    pending: dict[Value, Record] = field(default_factory=dict)  # wholes that are not made yet

    def run(self) -> LayerGraph:
        self.rewriter = Rewriter(self.graph)
        self.segments = dict(_segments(self.graph))
        self.wanted = self._wanted()
        for record in self.graph:
            self._node(record)
        return self.rewriter.finish()

    def _segments_of(self, record: Record) -> _Segments | None:
        return self.segments.get(record.path.split(".")[0], self.segments.get(""))

    def _wanted(self) -> set[Value]:
        """Values that something cuts, or that only pass through to where something does."""
        wanted: set[Value] = set()
        for record in reversed(list(self.graph)):
            reads = self.graph.sources(record.path)
            if record.op == "split":
                wanted.add(reads["x"])
            elif wanted & set(_outputs(record)) and record.op not in (INPUT, "attention"):
                tokenwise = registry()[record.op].tokenwise
                wanted |= {v for name, v in reads.items() if name.split(".")[0] in tokenwise}
        return wanted

    def _node(self, record: Record) -> None:
        reads = self.graph.sources(record.path)
        segments = self._segments_of(record)
        if record.op == "split" and self._cut(record, reads["x"]):
            return
        if record.op == "concat" and segments and len(reads) == len(segments.labels):
            self.parts[Value(record.path)] = [self._whole(value) for value in reads.values()]
            self.pending[Value(record.path)] = record
        elif segments and self._passes(record, reads):
            self._spread(record, segments)
        else:
            self._keep(record)
            if record.op == "split":
                self.parts.setdefault(reads["x"], _outputs(record))

    def _keep(self, record: Record) -> None:
        for value in self.graph.sources(record.path).values():
            self._whole(value)
        self.rewriter.keep(record)

    def _cut(self, record: Record, x: Value) -> bool:
        """Answers a split with the segments, where they are known."""
        if len(self.parts.get(x, ())) != len(record.outputs):
            return False
        self.rewriter.now.update(zip(_outputs(record), self.parts[x], strict=True))
        self.tally.fired.append(record.path)
        return True

    def _passes(self, record: Record, reads: Mapping[str, Value]) -> bool:
        """Whether a node is to be made once for each segment."""
        if record.op in (INPUT, OUTPUT):
            return False
        if record.op == "split_heads":
            return reads["x"] in self.parts and self._are_queries(Value(record.path))
        if record.op == "attention":
            return reads["query"] in self.parts
        run = self._running(record, reads)
        apart = [value in self.parts for value in run]
        can = all(known or self._can_cut(v) for known, v in zip(apart, run, strict=True))
        return bool(self.wanted & set(_outputs(record))) and any(apart) and can

    def _running(self, record: Record, reads: Mapping[str, Value]) -> list[Value]:
        """The inputs of a node that run along the tokens."""
        tokenwise = registry()[record.op].tokenwise
        found = [v for name, v in reads.items() if name.split(".")[0] in tokenwise]
        return [v for v in found if _runs(self.graph, v)]

    def _are_queries(self, value: Value) -> bool:
        """Whether only attentions read heads, as queries that all see the same keys, and whether
        their outputs are wanted in segments."""
        for path, argument in self.graph.readers(value):
            record = self.graph.record(path)
            if record.op != "attention" or argument != "query" or record.attrs["causal"]:
                return False
            mask = self.graph.sources(path).get("mask")
            if mask is not None and self.graph.shape(mask)[2] != 1:
                return False
            if Value(path) not in self.wanted:
                return False
        return True

    def _can_cut(self, value: Value) -> bool:
        kind = self.graph.type(value)
        return isinstance(kind, Tensor) and len(kind.shape) == 3

    def _spread(self, record: Record, segments: _Segments) -> None:
        """Makes a node once for each segment."""
        tokenwise = _tokenwise(record)
        count = len(segments.labels)
        given: list[dict[str, Value | list[Value]]] = [{} for _ in range(count)]
        for name, values in self.graph.arguments(record.path).items():
            one = isinstance(values, Value)
            rows = [
                self._apart(v, segments)
                if name in tokenwise and _runs(self.graph, v)
                else [self._whole(v)] * count
                for v in ([values] if isinstance(values, Value) else values)
            ]
            for arguments, column in zip(given, zip(*rows, strict=True), strict=True):
                arguments[name] = column[0] if one else list(column)
        made = []
        for label, arguments in zip(segments.labels, given, strict=True):
            part = replace(record, path=f"{record.path}.{label}", passes=(*record.passes, PASS))
            made.append(self.rewriter.new.add(part, arguments))
        for port, value in enumerate(_outputs(record)):
            self.parts[value] = [outputs[port] for outputs in made]
            self.pending[value] = record
        self.tally.fired.append(record.path)

    def _apart(self, value: Value, segments: _Segments) -> list[Value]:
        """The segments of a value: known, or cut here."""
        if value not in self.parts:
            path = f"{value.path}.cut" + (str(value.port) if value.port else "")
            cut = Record(path=path, op="split", passes=(PASS,))
            arguments = {"x": self._whole(value), "sizes": self._whole(segments.sizes)}
            self.parts[value] = self.rewriter.new.add(cut, arguments)
        return self.parts[value]

    def _whole(self, value: Value) -> Value:
        """Where the whole of an old value is found in the new graph; made if it is not there."""
        if value in self.pending:
            self._make_whole(value, self.pending.pop(value))
        return self.rewriter.now.get(value, value)

    def _make_whole(self, value: Value, record: Record) -> None:
        """Joins segments; what `concat` cannot join is computed again from what can be joined."""
        if record.op == "concat":
            self.rewriter.new.adopt(record, {"parts": self.parts[value]})
        elif self._can_cut(value):
            path = f"{value.path}.join" + (str(value.port) if value.port else "")
            join = Record(path=path, op="concat", span=record.span, passes=(PASS,))
            (made,) = self.rewriter.new.add(join, {"parts": self.parts[value]})
            self.rewriter.now[value] = made
        else:
            for other in _outputs(record):
                self.pending.pop(other, None)
            self._keep(record)


def _joins_again(graph: LayerGraph) -> bool:
    """Whether attention reads what was cut and joined again."""
    cut: set[str] = set()
    joined: set[str] = set()
    for record in graph:
        reads = {value.path for value in graph.sources(record.path).values()}
        if reads & joined or (record.op == "concat" and reads & cut):
            joined.add(record.path)
        elif record.op == "split" or reads & cut:
            cut.add(record.path)
        if record.op == "attention" and record.path in joined:
            return True
    return False


def _segments(graph: LayerGraph) -> list[tuple[str, _Segments]]:
    """The segments of every pass, by the name that its nodes have in front."""
    found = []
    for record in graph:
        if record.op == "segment_lengths":
            front = record.path.removesuffix("embed.sizes").rstrip(".")
            names = [v.path.removeprefix(f"{front}.") for v in graph.sources(record.path).values()]
            labels = tuple(name.split(".")[1] for name in names)
            found.append((front, _Segments(Value(record.path), labels)))
    return found


def _tokenwise(record: Record) -> tuple[str, ...]:
    """The inputs of a node that run along the tokens, those of attention in its queries."""
    names = {"attention": ("query",), "split_heads": ("x",)}
    return names.get(record.op, registry()[record.op].tokenwise)


def _outputs(record: Record) -> list[Value]:
    return [Value(record.path, port) for port in range(len(record.outputs))]


def _runs(graph: LayerGraph, value: Value) -> bool:
    """Whether a value has a token axis: static mixing weights [C, L] have none, ids [B, T] do."""
    kind = graph.type(value)
    return not isinstance(kind, Tensor) or len(kind.shape) > 2 or kind.dtype != "float"
