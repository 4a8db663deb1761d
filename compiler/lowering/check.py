"""Whether a lowered program is its layer graph: one call a node, the same connections."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from multiway.compiler.graph.layer_graph import INPUT, OUTPUT, LayerGraph
from multiway.compiler.graph.registry import registry
from multiway.compiler.lowering.dispatch import fast
from multiway.runtime.block import called

Edge = tuple[str, int, str, str]
"""(node, port) -> (node, argument)."""


def layer_edges(graph: LayerGraph) -> tuple[dict[str, str], set[Edge]]:
    """Nodes with their ops, and edges, of a layer graph."""
    nodes = {record.path: record.op for record in graph}
    edges = {
        (value.path, value.port, record.path, argument)
        for record in graph
        for argument, value in graph.sources(record.path).items()
        if record.op != OUTPUT
    }
    results = {(v.path, v.port, OUTPUT, "") for v in graph.sources(graph.output().path).values()}
    return nodes, edges | results


def fx_edges(module: fx.GraphModule) -> tuple[dict[str, str], set[Edge]]:
    """The same of a lowered program: blocks entered, get_attr and getitem contracted."""
    walk = _Walk()
    inputs = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            walk.nodes[node.meta["path"]] = INPUT
            inputs[node] = (node.meta["path"], 0)
    result = walk.graph(module, inputs)
    for path, port in walk.flat(result):
        walk.edges.add((path, port, OUTPUT, ""))
    walk.nodes["outputs"] = OUTPUT
    return walk.nodes, walk.edges


def corresponds(graph: LayerGraph, module: fx.GraphModule) -> bool:
    """Whether the identity on paths is an isomorphism between the two."""
    return layer_edges(graph) == fx_edges(module)


class _Walk:
    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.edges: set[Edge] = set()

    def flat(self, value: Any) -> list[tuple[str, int]]:
        """Every (path, port) in a nest of tuples, lists and mappings."""
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            return [value]
        items = value.values() if isinstance(value, dict) else value
        return [pair for item in items for pair in self.flat(item)]

    def graph(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
        for node in module.graph.nodes:
            if node.op == "output":
                return self.unbox(node.args[0], values)
            if node.op == "get_attr" and "path" in node.meta:  # what is made once
                self.nodes[node.meta["path"]] = node.meta["op"]
                values[node] = (node.meta["path"], 0)
            elif node.op not in ("placeholder", "get_attr"):
                values[node] = self.step(module, node, values)
        raise AssertionError("an fx graph without output")

    def unbox(self, argument: Any, values: dict[fx.Node, Any]) -> Any:
        if isinstance(argument, fx.Node):
            return values[argument]
        if isinstance(argument, dict):
            return {key: self.unbox(item, values) for key, item in argument.items()}
        return [self.unbox(item, values) for item in argument]

    def step(self, module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "call_module":
            block = called(module, node)
            places = [n for n in block.graph.nodes if n.op == "placeholder"]
            given = [values[a] for a in node.args]  # type: ignore[index]
            return self.graph(block, dict(zip(places, given, strict=True)))
        if node.target is operator.getitem:
            source, port = node.args
            assert isinstance(source, fx.Node) and isinstance(port, int)
            value = values[source]
            return value[port] if isinstance(value, list) else (value[0], port)
        return self.call(node, values)

    def call(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[str, int]:
        path = node.meta["path"]
        op = registry()[node.meta["op"]]
        assert node.target in (op.public, fast(op.name))
        self.nodes[path] = op.name
        names = [slot.name for slot in op.parsed.inputs]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        for name, argument in given.items():
            many = isinstance(argument, (list, tuple))
            for i, each in enumerate(argument if many else [argument]):  # type: ignore[arg-type]
                if isinstance(each, fx.Node) and each in values:
                    source, port = values[each]
                    self.edges.add((source, port, path, f"{name}.{i}" if many else name))
        return (path, 0)
