"""How a graph is made from another one, and what a pass tells of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value


@dataclass(kw_only=True)
class Tally:
    """What a pass did, for the report."""

    fired: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # node to reason
    numbers: dict[str, float] = field(default_factory=dict)  # what an analysis found


class Rewriter:
    """A graph that is made from another one, node by node. `now`: where old values are found."""

    def __init__(self, graph: LayerGraph) -> None:
        self.old = graph
        self.new = LayerGraph(name=graph.name, params=graph.params)
        self.new.recompute, self.new.packed = graph.recompute, graph.packed
        self.now: dict[Value, Value] = {}
        self.kept: set[str] = set()

    def moved(
        self, arguments: Mapping[str, Value | Sequence[Value]]
    ) -> dict[str, Value | list[Value]]:
        """Arguments of the old graph as those of the new one."""
        return {
            name: self.now.get(given, given)
            if isinstance(given, Value)
            else [self.now.get(value, value) for value in given]
            for name, given in arguments.items()
        }

    def keep(self, record: Record) -> None:
        """Takes a node over as it is."""
        self.kept.add(record.path)
        self.new.adopt(record, self.moved(self.old.arguments(record.path)))

    def add(
        self,
        record: Record,
        arguments: Mapping[str, Value | Sequence[Value]],
        by: str,
        before: Sequence[str] = (),
    ) -> list[Value]:
        """Adds a node that a pass made, with arguments of the old graph."""
        passes = tuple(dict.fromkeys([*record.passes, *before, by]))
        made = dataclasses.replace(record, passes=passes)
        return self.new.add(made, self.moved(arguments))

    def finish(self) -> LayerGraph:
        """The new graph, with the names of values that are still there."""
        for name, value in self.old.names.items():
            if value in self.now or value.path in self.kept:
                self.new.names[name] = self.now.get(value, value)
        return self.new
