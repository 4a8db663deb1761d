"""What the fusions of experts have in common: the nodes between a spread and a mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.matching.match import Match, source


class Region:
    """The nodes of a part with experts, met from its mixture upwards."""

    def __init__(self, graph: LayerGraph, mixed: Record) -> None:
        self.graph, self.mixed = graph, mixed
        self.nodes = {mixed.path}
        self.params: dict[str, str] = {}
        self.arguments: dict[str, Value] = {"gates": graph.sources(mixed.path)["gates"]}
        self.count = 0

    def of(self, record: Record, argument: str, *ops: str) -> Record | None:
        """The node that an argument comes from, which becomes one of the region, if its op fits."""
        return self._take(source(self.graph, record.path, argument), lambda each: each.op in ops)

    def norm_of(self, record: Record) -> Record | None:
        """The same for the norm that a node reads as x."""
        return self._take(source(self.graph, record.path, "x"), lambda each: each.is_norm)

    def _take(self, found: Record | None, fits: Callable[[Record], bool]) -> Record | None:
        if found is None or not fits(found):
            return None
        self.nodes.add(found.path)
        return found

    def takes(self, record: Record, **roles: str) -> None:
        """Takes the parameters of a node over, under other roles."""
        self.params |= {
            new: record.params[old] for old, new in roles.items() if old in record.params
        }

    def spread(self, record: Record) -> Record | None:
        """The spread that a node reads. All of a region must be of one x."""
        found = self.of(record, "x", "spread")
        if found is None:
            return None
        x = self.graph.sources(found.path)["x"]
        self.count = found.attrs["count"]
        return found if self.arguments.setdefault("x", x) == x else None


def experts_of(region: Region) -> dict[str, Any]:
    return {"count": region.count, "most": region.mixed.attrs["most"]}


def fused_experts(op: str, region: Region, attrs: Mapping[str, Any]) -> Match:
    """The fused op in the place of the mixture."""
    mixed = region.mixed
    return Match(
        at=mixed.path,
        record=Record(
            path=mixed.path, op=op, attrs=dict(attrs), params=region.params, span=mixed.span
        ),
        arguments={"x": region.arguments["x"], "gates": region.arguments["gates"]},
        outputs=(Value(mixed.path),),
        nodes=frozenset(region.nodes),
    )
