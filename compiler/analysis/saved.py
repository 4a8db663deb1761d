"""What autograd keeps for backward, and what is kept if some nodes are made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from multiway.compiler.analysis.costs import node_flops, node_moved_bytes, type_bytes
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value, block_of
from multiway.compiler.graph.registry import registry

INNER = -1  # the port of a value that is inside of a node
# What a core computes while it moves a byte, in order of magnitude: ops without products cost what
# they read and write.
FLOPS_PER_BYTE = 8.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a replay of a node costs and starts from, and what its backward needs.

    Views are no nodes here: whoever reads a view reads what it is a view of.
    """

    path: str
    work: float  # FLOPs, and bytes moved as FLOPs
    reads: frozenset[Value]
    saves: frozenset[Value]
    random: bool = False  # made again, it would draw other numbers


@dataclass(kw_only=True)
class Block:
    """A block, or what is outside of all under an empty name, with what it makes again."""

    name: str
    nodes: list[Node] = field(default_factory=list)
    again: frozenset[str] = frozenset()
    held: frozenset[Value] = frozenset()  # what it keeps
    freed: int = 0  # bytes that are there again while its backward runs

    def holds(self, again: Collection[str], crossing: Collection[Value]) -> frozenset[Value]:
        """What is kept if these nodes are made again: what their replay starts from, and what the
        other nodes save and the replay does not give."""
        found: set[Value] = set()
        for node in self.nodes:
            found |= node.reads if node.path in again else node.saves
        return frozenset(v for v in found if v.path not in again or v in crossing)


class SavedValues:
    """Which values of a graph are kept; first of all those that are if nothing is made again.

    What goes from block to block is kept whoever makes it. `total`: bytes that are kept, and those
    of one block that are there again while its backward runs.
    """

    def __init__(self, graph: LayerGraph, sizes: Mapping[str, int]) -> None:
        self.graph, self.sizes = graph, sizes
        self.bytes: dict[Value, int] = {}
        self.crossing: set[Value] = set()
        self.blocks: dict[str, Block] = {"": Block(name="")}
        for record in graph:
            if record.definition is not None and not record.view_of:
                name = block_of(record.path)
                self.blocks.setdefault(name, Block(name=name)).nodes.append(self._node(record))
        self.holders: Counter[Value] = Counter()
        self.kept = 0
        for block in self.blocks.values():
            self.make_again(block, ())  # before `_full`, which is asked for what is made again only
        self._full = {name: self.inside(block) for name, block in self.blocks.items()}

    @property
    def total(self) -> int:
        return self.kept + max(block.freed for block in self.blocks.values())

    def make_again(self, block: Block, again: Iterable[str]) -> None:
        """Changes which nodes of a block are made again."""
        block.again = frozenset(again)
        held = block.holds(block.again, self.crossing)
        self.kept += self.growth(block, held)
        self.holders.update(held - block.held)
        self.holders.subtract(block.held - held)
        block.held = held
        if block.again:
            block.freed = self._full[block.name] - self.inside(block)
        else:
            block.freed = 0

    def growth(self, block: Block, held: frozenset[Value]) -> int:
        """How many bytes more are kept if a block holds these values."""
        more = sum(self.bytes[value] for value in held - block.held if not self.holders[value])
        return more - sum(self.bytes[v] for v in block.held - held if self.holders[v] == 1)

    def inside(self, block: Block) -> int:
        """Bytes kept of what a block alone reads."""
        return sum(self.bytes[value] for value in block.held if value not in self.crossing)

    def nodes_again(self) -> frozenset[str]:
        """All nodes that are made again, with the views of what they give."""
        found = {path for block in self.blocks.values() for path in block.again}
        views = {
            record.path
            for record in self.graph
            if record.view_of and self._base(Value(record.path)).path in found
        }
        # A view outside of the block is there for others; it is no part of the block's replay.
        same = {path for path in views if block_of(path) == block_of(self._base(Value(path)).path)}
        return frozenset(found | same)

    def _node(self, record: Record) -> Node:
        saves = registry()[record.op].saves
        reads, saved = set(), set()
        for argument, given in self.graph.sources(record.path).items():
            value = self._base(given)
            self._meet(value)
            reads.add(value)
            if argument.split(".")[0] in saves:
                saved.add(value)
        if "output" in saves:
            self._meet(Value(record.path))
            saved.add(Value(record.path))
        if "inner" in saves:  # a value of the kernel's own, as large as the output
            inner = Value(record.path, INNER)
            self.bytes[inner] = type_bytes(record.outputs[0], self.sizes)
            saved.add(inner)
            if not block_of(record.path):
                self.crossing.add(inner)
        moved = FLOPS_PER_BYTE * node_moved_bytes(self.graph, record, self.sizes)
        return Node(
            path=record.path,
            work=node_flops(self.graph, record, self.sizes) + moved,
            reads=frozenset(reads),
            saves=frozenset(saved),
            random=registry()[record.op].random,
        )

    def _base(self, value: Value) -> Value:
        record = self.graph.record(value.path)
        while viewed := record.view_of:
            value = self.graph.sources(value.path)[viewed]
            record = self.graph.record(value.path)
        return value

    def _meet(self, value: Value) -> None:
        if value in self.bytes:
            return
        record, block = self.graph.record(value.path), block_of(value.path)
        listed = record.definition is None or record.definition.memory == "list"
        self.bytes[value] = 0 if listed else type_bytes(self.graph.type(value), self.sizes)
        if not block or any(block_of(reader) != block for reader in self._readers(value)):
            self.crossing.add(value)

    def _readers(self, value: Value) -> Iterator[str]:
        """Nodes that read a value or a view of it."""
        for reader, _ in self.graph.readers(value):
            yield reader
            if self.graph.record(reader).view_of:
                for port in self.graph.ports_read(reader):
                    yield from self._readers(Value(reader, port))
