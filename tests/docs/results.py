"""The recorded results of benchmarks/run.py as a table, and the cases with what they mean."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HISTORY = BENCHMARKS / "results" / "history.json"
Result = Mapping[str, Any]


def cases() -> Sequence[Any]:
    """The cases that there are now: targets are theirs, whenever a result was recorded."""
    name = "multiway_benchmark_cases"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / "cases.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    found: Sequence[Any] = sys.modules[name].CASES
    return found


def recorded(folder: Path) -> list[Result]:
    """The results in a folder, none where there is no such folder."""
    return [json.loads(path.read_text()) for path in folder.glob("*.json") if path != HISTORY]


def results_table(
    found: Sequence[Result],
    before: Sequence[Result] = (),
    targets: Mapping[str, float | None] | None = None,
) -> str:
    """One table for each machine. before: results of an earlier commit, as a column of their own.
    targets: those of today's cases, by name; else the one that a result was recorded with."""
    earlier = {each["case"]["name"]: each for each in before}
    ordered = sorted(found, key=lambda each: (place(each), each["case"]["name"]))
    ratios = ("before", "after") if before else ("ratio",)
    head = ("case", *ratios, "floor", "target", "torch.compile", "spread", "commit")
    rows = [head]
    for each in ordered:
        name = each["case"]["name"]
        shown = (ratio(each),) if not before else (ratio(earlier.get(name)), ratio(each))
        target = (targets or {}).get(name, each["case"]["target"])
        rows.append(
            (
                name,
                *shown,
                number(each.get("floor_ratio")),
                "-" if target is None else f"{target:g}",
                "skipped" if each.get("compiled_skipped") else number(each.get("compiled_ratio")),
                "-" if each["spread"] is None else f"{each['spread']:.0%}",
                ((each.get("commit") or {}).get("id") or "-")[:7],
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        row[0].ljust(widths[0])
        + "".join(cell.rjust(w + 2) for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    parts = []
    pairs = zip(ordered, lines[1:], strict=True)
    for machine, group in itertools.groupby(pairs, key=lambda pair: place(pair[0])):
        parts += [f"# {machine}", lines[0], *(line for _, line in group), ""]
    return "\n".join(parts[:-1])


def ratio(result: Result | None) -> str:
    """What a result says: its ratio, or seconds where it is compared with nothing."""
    if result is None:
        return "-"
    if result["ratio"] is None:
        return f"{result['sides'][0]['median_s']:.2f} s"
    return number(result["ratio"])


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def place(result: Result) -> str:
    """The machine and the torch of a result."""
    machine, versions = result.get("machine"), result.get("versions")
    if not machine or not versions:
        return "a machine that is not recorded"
    return (
        f"{machine['cpu']}, {machine['capability']}, {machine['cores']} cores, "
        f"{machine['threads']} threads; torch {versions['torch']}"
    )


def cases_table() -> str:
    """Every case and what it compares."""
    width = max(len(case.name) for case in cases())
    return "\n".join(f"{case.name:<{width}}  {case.doc}" for case in cases())
