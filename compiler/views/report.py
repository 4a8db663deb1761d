"""What the pipeline did to the programs of a spec: for people, and as plain data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from multiway.compiler.analysis.costs import (
    default_sizes,
    moved_bytes,
    node_moved_bytes,
    part_of,
    products,
)
from multiway.compiler.graph.layer_graph import INPUT, OUTPUT, LayerGraph, Record, block_of
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.types import History, Sizes, Tensor, Type, number
from multiway.compiler.lowering.dispatch import misfit, widths_of
from multiway.compiler.pipeline import Stage


def report(
    stages: Sequence[Stage], *, limits: Mapping[str, int], sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """One program: counts at every stage, what fired where, what was refused and why.

    limits: the longest length of each named size, for counting bytes. sizes: these sizes instead.
    """
    built, fused = stages[0].graph, stages[-1].graph
    chosen = {**default_sizes(built, limits, batch=1, length=None), **(sizes or {})}
    return {
        "program": built.name,
        "sizes": chosen,
        "before": counts(built, chosen),
        "after": counts(fused, chosen),
        "passes": [
            {
                "name": stage.name,
                "fired": len(stage.tally.fired),
                "where": stage.tally.fired,
                "refused": stage.tally.refused,
                "numbers": stage.tally.numbers,
                "nodes": len(stage.graph),
                "products": products(stage.graph),
                "moved_bytes": moved_bytes(stage.graph, chosen),
                "ms": round(1000 * stage.seconds, 2),
            }
            for stage in stages[1:]
        ],
        "wiring": {"before": wiring(built, chosen), "after": wiring(fused, chosen)},
        **_memory_plan(fused),
        "kernels": kernel_use(fused, chosen),
    }


def _memory_plan(graph: LayerGraph) -> dict[str, list[str]]:
    """Blocks that backward runs again in part: of their nodes those that run, and the others."""
    again = [record.path for record in graph if record.path in graph.recompute]
    blocks = list(dict.fromkeys(map(block_of, again)))
    others = [
        record.path
        for record in graph
        if record.path not in graph.recompute and block_of(record.path) in blocks
    ]
    return {"recompute": blocks, "recomputed_nodes": again, "kept_nodes": others}


def counts(graph: LayerGraph, sizes: Mapping[str, int]) -> dict[str, int]:
    """Nodes, matrix products, and bytes that all nodes read and write."""
    return {
        "nodes": len(graph),
        "products": products(graph),
        "moved_bytes": moved_bytes(graph, sizes),
    }


def wiring(graph: LayerGraph, sizes: Mapping[str, int]) -> dict[str, int]:
    """Nodes that a wiring added, or that stand for such, and the bytes that they read and write."""
    added = [record for record in graph if part_of(record.path) == "wiring"]
    moved = sum(node_moved_bytes(graph, record, sizes) for record in added)
    return {"nodes": len(added), "moved_bytes": moved}


def kernel_use(graph: LayerGraph, sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """For each op: how many of its nodes a kernel takes (`kernel`), how many run as their reference
    because there is no kernel (`reference`), or because the kernel does not fit them or does not
    take their calls (its reason).
    """
    from multiway.runtime.kernels import kernels

    found: dict[str, Counter[str]] = {}
    answers: dict[Any, str] = {}
    for record in graph:
        if record.op in (INPUT, OUTPUT) or registry()[record.op].once:
            continue
        answer = "reference"
        if record.op in kernels():
            types = graph.argument_types(record, graph.arguments(record.path))
            key = (record.op, str(types), str(record.attrs))
            if key not in answers:
                reason = misfit(registry()[record.op], record.attrs, widths_of(graph, record))
                answers[key] = reason or _asked(record, types, sizes)
            answer = answers[key]
        found.setdefault(record.op, Counter())[answer] += 1
    return {op: dict(counter) for op, counter in sorted(found.items())}


def _asked(record: Record, types: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """What the kernel of an op says to tensors of these types on the CPU in float32."""
    from multiway.runtime.kernels import kernels

    given = {name: _stand_in(kind, sizes) for name, kind in types.items()}
    takes = kernels()[record.op].takes
    return (takes and takes(**given, **record.attrs)) or "kernel"


def _stand_in(kind: Type | Sequence[Type], sizes: Mapping[str, int]) -> Any:
    """A tensor of a type, all of whose elements are one: kernels take none that is no true one."""
    import torch

    dtypes = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
    match kind:
        case Tensor(shape, dtype):
            whole = [number(d, sizes) for d in shape]
            return torch.zeros((), dtype=dtypes[dtype]).expand(whole)
        case History(length, shape):
            return [_stand_in(Tensor(shape), sizes)] * length
        case Sizes(dims):
            return [number(d, sizes) for d in dims]
    return [_stand_in(each, sizes) for each in kind]


def to_text(found: Mapping[str, Any]) -> str:
    """The report of one program as lines."""
    before = found["before"]
    sizes = ", ".join(f"{name} {size}" for name, size in found["sizes"].items())
    lines = [
        f"program {found['program']} (bytes at {sizes}, float32)",
        "  pass              fired   nodes  products  bytes moved      ms",
        _row("built", "", before, ""),
    ]
    for each in found["passes"]:
        lines.append(_row(each["name"], each["fired"], each, each["ms"]))
        if each["where"]:
            lines.append(f"      at {_places(each['where'])}")
        reasons = Counter(_folded(reason) for reason in each["refused"].values())
        lines += [f"      refused {count} times: {reason}" for reason, count in reasons.items()]
        lines += [f"      {name}: {number:g}" for name, number in each["numbers"].items()]
    lines.append(f"  in all: {summary(found)}")
    if found["wiring"]["before"]["nodes"]:
        lines.append(f"  of the wiring: {_wiring_summary(found['wiring'])}")
    if found["recompute"]:
        lines.append(f"  recomputed in backward: {_places(found['recomputed_nodes'], most=16)}")
        lines.append(
            f"  kept in these blocks: {_places(found['kept_nodes'], most=16) or 'nothing'}"
        )
    lines.append("  kernels:")
    for op, answers in found["kernels"].items():
        lines.append(f"    {op:22} {_answers(answers)}")
    return "\n".join(lines)


def summary(found: Mapping[str, Any]) -> str:
    """What became of one program, in a line."""
    before, after = found["before"], found["after"]
    return (
        f"nodes {before['nodes']} to {after['nodes']}, products {before['products']} to "
        f"{after['products']}, bytes moved {after['moved_bytes'] / before['moved_bytes']:.2f} of "
        "before"
    )


def _wiring_summary(found: Mapping[str, Mapping[str, int]]) -> str:
    before, after = (found[stage] for stage in ("before", "after"))
    shown = (f"{each['moved_bytes'] / 2**20:,.1f} MiB" for each in (before, after))
    return (
        f"nodes {before['nodes']} to {after['nodes']}, bytes moved {' to '.join(shown)} "
        "(with the norms that are fused into them)"
    )


def _answers(answers: Mapping[str, int]) -> str:
    """How often a kernel said what. Reasons that differ by their numbers alone are one."""
    alike: dict[str, list[str]] = {}
    for answer in answers:
        alike.setdefault(re.sub(r"\d+", "*", answer), []).append(answer)
    told = {one[0] if len(one) == 1 else pattern: one for pattern, one in alike.items()}
    return "; ".join(f"{sum(answers[e] for e in one)} {text}" for text, one in told.items())


def _row(name: str, fired: Any, found: Mapping[str, int], ms: Any) -> str:
    mib = f"{found['moved_bytes'] / 2**20:,.1f} MiB"
    return f"  {name:16} {fired:>6} {found['nodes']:>7} {found['products']:>9} {mib:>12} {ms:>7}"


def _places(paths: Sequence[str], most: int = 6) -> str:
    """Paths with the numbers of blocks folded: `blocks.*.mix.sum (24)`."""
    patterns = Counter(_folded(path) for path in paths)
    told = [f"{pattern} ({count})" if count > 1 else pattern for pattern, count in patterns.items()]
    more = len(told) - most
    return ", ".join(told[:most]) + (f" and {more} more" if more > 0 else "")


def _folded(text: str) -> str:
    """A text about one block as that about any: `blocks.3.ffn` is `blocks.*.ffn`."""
    words = []
    for word in text.split(" "):
        block = block_of(word) or (word if block_of(word + ".x") == word else "")
        front = block.rpartition(".")[0]
        words.append(f"{front}.*{word.removeprefix(block)}" if block else word)
    return " ".join(words)
