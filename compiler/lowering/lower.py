"""Layer graph to torch.fx: a GraphModule that calls the blocks of the model, and one for each.

Nothing is traced. Every graph node becomes one call; parameters are read before the first, with
get_attr, a port of several with getitem. All programs of a model read the same parameter modules,
and call the same blocks, each of which holds a GraphModule for every call (runtime/block.py).
Only nodes that read nothing but parameters and whose op is `once` become no calls: an inference
program keeps what they give as buffers (runtime/parameters/derived.py).
"""

from __future__ import annotations

import builtins
import itertools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from multiway.compiler.graph.composed import several
from multiway.compiler.graph.layer_graph import (
    INPUT,
    OUTPUT,
    LayerGraph,
    Record,
    Value,
    block_of,
    grouped,
)
from multiway.compiler.graph.order import Step, steps
from multiway.compiler.graph.registry import registry
from multiway.compiler.lowering.codegen import read_together
from multiway.compiler.lowering.dispatch import callee, widths_of
from multiway.runtime.block import Block, block_in
from multiway.runtime.parameters.derived import Folded, Recipe
from multiway.runtime.parameters.packed import Buffer, Packing
from multiway.runtime.training.recompute import recompute

_UNMADE = torch.empty(0)  # made here: torch.export has no plain tensors while it traces


def lower(graph: LayerGraph, containers: nn.Module, *, kernels: bool = False) -> fx.GraphModule:
    """The program as a GraphModule. `containers` holds the parameters under their spec paths.

    kernels: call the kernels of ops where there are any; else only references.
    """
    return _Lowering(graph, containers, kernels).program()


class _Scope:
    """One fx graph while it is made: the root, or a block."""

    def __init__(self, graph: LayerGraph, prefix: str, kernels: bool) -> None:
        self.source, self.prefix, self.kernels = graph, prefix, kernels
        self.once: dict[str, Record] = {}  # by the name of the buffer
        self.fx = fx.Graph()
        self.values: dict[Value, fx.Node] = {}
        self.parameters: dict[str, fx.Node] = {}
        self.head: fx.Node | None = None  # the last placeholder, or attribute behind it

    def name(self, path: str) -> str:
        """The fx name of a node: its path, without that of the block it stands in."""
        return path.removeprefix(self.prefix + ".").replace(".", "_")

    def placeholder(self, name: str, value: Value) -> fx.Node:
        taken = {node.target for node in self.fx.nodes if node.op == "placeholder"}
        if self.prefix and hasattr(builtins, name):
            name = (
                f"{name}_value"  # fx would rename it, and a second one of the name fill the first
            )
        unique = next(n for n in _numbered(name) if n not in taken)
        self.values[value] = self.head = self.fx.placeholder(unique)
        return self.head

    def call(self, record: Record) -> None:
        """Adds the call of one graph node and binds its outputs."""
        op = registry()[record.op]
        if op.once:
            name = self.name(record.path)
            self.once[name] = record
            self.bind(record, self.attribute(f"folded.{name}", name), False)
            return
        arguments: dict[str, Any] = {}
        for name, given in self.source.arguments(record.path).items():
            if isinstance(given, Value):
                arguments[name] = self.values[given]
            else:
                arguments[name] = [self.values[value] for value in given]
        arguments |= {
            role: self.parameter(paths)
            if isinstance(paths, str)
            else list(map(self.parameter, paths))
            for role, paths in grouped(record.params).items()
        }
        names = [slot.name for slot in op.parsed.inputs]
        count = next((i for i, name in enumerate(names) if name not in arguments), len(names))
        args = tuple(arguments[name] for name in names[:count])
        kwargs = {name: arguments[name] for name in names[count:] if name in arguments}
        function = op.public
        if self.kernels:
            packed, widths = record.path in self.source.packed, widths_of(self.source, record)
            function = callee(op, record.attrs, widths, packed=packed)
        node = self.fx.create_node(
            "call_function", function, args, {**kwargs, **record.attrs}, self.name(record.path)
        )
        self.bind(record, node, several(op))

    def bind(self, record: Record, node: fx.Node, many: bool) -> None:
        """Gives the outputs of a node their fx nodes: itself, or one getitem a port."""
        node.meta.update(path=record.path, op=record.op, span=record.span, passes=record.passes)
        if not many:
            self.values[Value(record.path)] = node
            return
        for port in sorted(self.source.ports_read(record.path)):
            name = f"{node.name}_{port}"
            self.values[Value(record.path, port)] = self.fx.create_node(
                "call_function", operator.getitem, (node, port), {}, name
            )

    def parameter(self, path: str) -> fx.Node:
        if path not in self.parameters:
            block = ".".join(self.prefix.split(".")[-2:])
            target = path.removeprefix(block + ".") if block else path
            self.parameters[path] = self.attribute(target, target.replace(".", "_"))
        return self.parameters[path]

    def attribute(self, target: str, name: str) -> fx.Node:
        """Reads it behind the placeholders and what else is read: code reads all at once then."""
        with self.fx.inserting_after(self.head):  # None: at the end
            self.head = self.fx.create_node("get_attr", target, (), {}, name)
        return self.head


class _Lowering:
    def __init__(self, graph: LayerGraph, containers: nn.Module, kernels: bool) -> None:
        self.graph, self.containers, self.kernels = graph, containers, kernels
        self.root = _Scope(graph, "", kernels)
        self.key = _free(graph.name, containers)  # under which blocks know this program
        self.recipes: dict[str, Recipe] = {}  # by the path of the node

    def program(self) -> fx.GraphModule:
        for record in self.graph.inputs():
            node = self.root.placeholder(record.path.split(".", 1)[1], Value(record.path))
            self.root.bind(record, node, bool(record.attrs["list"]))
        for item in steps(self.graph):
            if item.block:
                self.block(item)
            elif item.records[0].op == OUTPUT:
                self.root.fx.output(self.outputs(item.records[0]))
            elif item.records[0].op != INPUT:
                self.root.call(item.records[0])
        roots = {**dict(self.containers.named_children()), **self.folded(self.root)}
        module = _module(self.root.fx, roots, self.graph.name)
        if self.recipes:
            recipes = list(self.recipes.values())
            module.register_forward_pre_hook(Folded(recipes, self.groups(), self.containers))
        if self.graph.packed:
            module.register_forward_pre_hook(Packing(list(self.packed()), self.containers))
        return module

    def packed(self) -> Iterator[list[str | Buffer]]:
        """The weights of each product whose weights are laid out once."""
        for record in self.graph:
            if record.path in self.graph.packed:
                given: dict[str, Value | str] = {**self.graph.sources(record.path), **record.params}
                found = [self._kept(each) for name, each in given.items() if _is_weight(name)]
                together = record.packs == "together"
                yield from [found] if together else [[each] for each in found]

    def _kept(self, source: Value | str) -> str | Buffer:
        """A parameter's path, or where what is made of parameters once is kept."""
        if isinstance(source, str):
            return source
        recipe = self.recipes[source.path]
        return Buffer(module=recipe.module, name=recipe.name)

    def folded(self, scope: _Scope) -> dict[str, nn.Module]:
        """A module with a buffer for everything in a scope that is made from parameters once."""
        if not scope.once:
            return {}
        module = nn.Module()
        for name, record in scope.once.items():
            module.register_buffer(name, _UNMADE, persistent=False)
            self.recipes[record.path] = Recipe(
                module=module,
                name=name,
                function=registry()[record.op].reference,
                parameters=record.params,
            )
        return {"folded": module}

    def groups(self) -> list[list[int]]:
        """Recipes by number whose tensors one product reads together."""
        numbers = {path: i for i, path in enumerate(self.recipes)}
        found = []
        for record in self.graph:
            if record.packs == "together":
                for values in self.graph.arguments(record.path).values():
                    many = [] if isinstance(values, Value) else values
                    if many and all(value.path in numbers for value in many):
                        found.append([numbers[value.path] for value in many])
        return found

    def block(self, item: Step) -> None:
        """Makes a block's GraphModule, gives it to the block, and calls that."""
        scope = _Scope(self.graph, item.block, self.kernels)
        outside = self._read_from_outside(item)
        for value in outside:
            scope.placeholder(self._placeholder_name(value), value)
        for record in item.records:
            scope.call(record)
        results = self._read_outside(item)
        made = [scope.values[value] for value in results]
        scope.fx.output(made[0] if len(made) == 1 else tuple(made))
        place = ".".join(item.block.split(".")[-2:])
        block = block_in(self.containers.get_submodule(place))
        children = {**dict(block.named_children()), **self.folded(scope)}
        made_block = _module(scope.fx, children, item.block)
        block.graphs[self.key, item.block] = made_block
        again = [each for each in scope.fx.nodes if each.meta.get("path") in self.graph.recompute]
        if again:
            recompute(made_block, [each.name for each in again])
        arguments = tuple(self.root.values[value] for value in outside)
        name = self.root.name(item.block)
        which: dict[str, Any] = {"program": self.key, "path": item.block}
        call = self.root.fx.create_node("call_module", place, arguments, which, name)
        call.meta["path"] = item.block
        for port, value in enumerate(results):
            self.root.values[value] = (
                call
                if len(results) == 1
                else self.root.fx.create_node(
                    "call_function", operator.getitem, (call, port), {}, f"{name}_{port}"
                )
            )

    def _placeholder_name(self, value: Value) -> str:
        """A name without the number of the block, so that blocks of one layout have one code."""
        if block_of(value.path):
            return next(part for part in reversed(value.path.split(".")) if not part.isdigit())
        if value.path.startswith(("history.", "inputs.")):
            return value.path.split(".")[0 if value.path.startswith("history.") else 1]
        return self.root.values[value].name

    def _read_from_outside(self, item: Step) -> list[Value]:
        inside = {record.path for record in item.records}
        reads = [
            value
            for record in item.records
            for value in self.graph.sources(record.path).values()
            if value.path not in inside
        ]
        return list(dict.fromkeys(reads))

    def _read_outside(self, item: Step) -> list[Value]:
        return [
            value
            for record in item.records
            for value in (Value(record.path, port) for port in range(len(record.outputs)))
            if any(block_of(path) != item.block for path, _ in self.graph.readers(value))
        ]

    def outputs(self, record: Record) -> Any:
        """A value, or a tuple of values, lists (`cache`) and mappings (metrics of a loss, taps)."""
        taps = list(record.attrs.get("taps", ()))
        found: dict[str, Any] = {}
        tapped: dict[str, fx.Node] = {}
        for name, given in self.graph.arguments(record.path).items():
            if isinstance(given, Value):
                node: Any = self.root.values[given]
            else:
                node = [self.root.values[value] for value in given]
            if name.startswith("tap") and taps:
                tapped[taps[int(name[3:])]] = node
            elif name == "loss":
                found |= {name: node, "metrics": {}}
            elif name == "metrics_load":
                loads = dict(zip(record.attrs["loads"], node, strict=True))
                found["metrics"]["load"] = loads
            elif name.startswith("metrics_"):
                found["metrics"][name.removeprefix("metrics_")] = node
            else:
                found[name] = node
        results = [*found.values(), *([tapped] if tapped else [])]
        return results[0] if len(results) == 1 else tuple(results)


def _is_weight(name: str) -> bool:
    return name == "weight" or name.startswith("weights.")


def _numbered(name: str) -> Iterator[str]:
    yield name
    for i in itertools.count(1):
        yield f"{name}_{i}"


def _free(name: str, containers: nn.Module) -> str:
    """The name of a program, with a number where blocks have one of that name."""
    taken = {
        program
        for each in containers.modules()
        if isinstance(each, Block)
        for program, _ in each.graphs
    }
    return next(each for each in _numbered(name) if each not in taken)


def _module(graph: fx.Graph, children: Mapping[str, nn.Module], name: str) -> fx.GraphModule:
    """A GraphModule around the given modules themselves: parameters are shared, not copied."""
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=_class_name(name))
    for path, child in children.items():
        module.add_module(path, child)
    read_together(graph)
    module.graph = graph
    graph.lint()
    return module


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.replace(".", "_").split("_"))
