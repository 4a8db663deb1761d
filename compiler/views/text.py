"""The layer graph as text, one line a node, with repeated blocks folded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from multiway.compiler.graph.layer_graph import INPUT, LayerGraph, Record, Value, block_of
from multiway.compiler.graph.order import Step, steps
from multiway.compiler.graph.registry import registry


@dataclass(frozen=True)
class Fold:
    """Consecutive blocks of one layout: the first stands for all."""

    first: str
    last: str
    count: int
    same_sizes: bool

    def line(self) -> str:
        if self.count == 1:
            return f"# {self.first}"
        sizes = "" if self.same_sizes else " (sizes differ)"
        return f"# {self.first} to {self.last}: {self.count} blocks like this one{sizes}"


def to_text(graph: LayerGraph, *, fold: bool = True) -> str:
    """The whole graph in the order in which it runs.

    Folding shows the first of consecutive blocks that have the same layout.
    """
    lines = [f"# program {graph.name}: {len(graph)} nodes"]
    for step in visible(graph) if fold else steps(graph):
        if isinstance(step, Fold):
            lines.append(step.line())
        else:
            lines += [line(graph, record) for record in step.records]
    return "\n".join(lines)


def visible(graph: LayerGraph) -> Iterator[Step | Fold]:
    """The steps of a folded picture: in front of a block that stands for several, its fold."""
    folds = {fold.first: fold for fold in folded(graph)}
    last = ""
    seen: set[str] = set()
    for step in steps(graph):
        if step.block in folds:
            last, seen = folds[step.block].last, set()
            yield folds[step.block]
            yield step
        elif not step.block:
            # Between the blocks of a fold, what repeats with another number is shown once.
            pattern = re.sub(r"\d+", "#", step.records[0].path)
            if not last or pattern not in seen:
                yield step
            seen.add(pattern)
        if step.block == last:
            last = ""


def line(graph: LayerGraph, record: Record) -> str:
    """`path = op(inputs, attributes) -> types  # parameters`."""
    inputs = [_argument(graph, name, value) for name, value in graph.arguments(record.path).items()]
    attrs = [f"{name}={value}" for name, value in record.attrs.items() if record.op != INPUT]
    outputs = ", ".join(_shortened([str(t) for t in record.outputs]))
    text = f"{record.path} = {record.op}({', '.join(inputs + attrs)})"
    text += f" -> {outputs}" if outputs else ""
    params = [f"{p}{list(graph.params[p].shape)}".replace(" ", "") for p in record.params.values()]
    return text + (f"  # {', '.join(params)}" if params else "")


def _argument(graph: LayerGraph, name: str, given: Value | list[Value]) -> str:
    if isinstance(given, list):
        return f"{name}=[{', '.join(_shortened([value_name(graph, v) for v in given]))}]"
    return f"{name}={value_name(graph, given)}"


def _shortened(items: list[str]) -> list[str]:
    """The first of many items, as a cache has them: one key and one value for every layer."""
    return [*items[:3], f"... {len(items)} in all"] if len(items) > 8 else items


def value_name(graph: LayerGraph, value: Value) -> str:
    """The path of a node, with the port where it has several."""
    several = len(graph.record(value.path).outputs) > 1
    return f"{value.path}:{value.port}" if several else value.path


def folded(graph: LayerGraph) -> Iterator[Fold]:
    """Runs of consecutive blocks whose nodes have the same names, ops and connections."""
    blocks: dict[str, list[Record]] = {}
    for record in graph:
        if block := block_of(record.path):
            blocks.setdefault(block, []).append(record)
    hiddens = {
        value: int(name.rpartition(".")[2])
        for name, value in graph.names.items()
        if re.fullmatch(r"(\w+\.)?hidden\.\d+", name)
    }
    run: list[str] = []
    layout = None
    sizes: set[str] = set()
    for block, records in blocks.items():
        found = _layout(graph, block, records, hiddens)
        if run and found != layout:
            yield Fold(run[0], run[-1], len(run), len(sizes) == 1)
            run, sizes = [], set()
        run.append(block)
        layout = found
        sizes.add("|".join(str(t) for record in records for t in record.outputs))
    if run:
        yield Fold(run[0], run[-1], len(run), len(sizes) == 1)


def _layout(
    graph: LayerGraph, block: str, records: list[Record], hiddens: Mapping[Value, int]
) -> tuple[object, ...]:
    """What two blocks must share to be drawn as one: everything but sizes and their number."""
    return tuple(
        (
            record.path.removeprefix(block),
            record.op,
            tuple(record.params),
            *_settings(record),
            *_edges(graph, record, block, hiddens),
        )
        for record in records
    )


def _settings(record: Record) -> Iterator[tuple[str, Any]]:
    """Attributes that are no sizes."""
    attrs = registry()[record.op].attrs
    return ((n, value) for n, value in record.attrs.items() if not attrs[n].letter)


def _edges(
    graph: LayerGraph, record: Record, block: str, hiddens: Mapping[Value, int]
) -> Iterator[tuple[str, str, int]]:
    number = int(block.rpartition(".")[2])
    for argument, value in graph.sources(record.path).items():
        if value.path.startswith(block + "."):
            yield argument, value.path.removeprefix(block), value.port
        elif value in hiddens:  # the embedding is to block 0 what a block is to the next one
            yield argument, f"hidden <{hiddens[value] - number}>", 0
        elif value.path.startswith("inputs."):  # every layer has ports of its own of the cache
            yield argument, value.path, 0
        else:
            yield argument, _relative(value.path, number), value.port


def _relative(path: str, number: int) -> str:
    """A path outside of a block, with numbers as distances from the block's own."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", lambda m: f"<{int(m[0]) - number}>", path)
