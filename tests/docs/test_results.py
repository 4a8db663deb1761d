"""The tables of recorded benchmark results and of cases, and the history of runs."""

from __future__ import annotations

import json
from typing import Any

from results import HISTORY, cases, recorded, results_table

MACHINE = {"cpu": "Fast", "capability": "AVX2", "cores": 2, "threads": 1}
VERSIONS = {"torch": "2.13"}
HERE = {"machine": MACHINE, "versions": VERSIONS}


def result(name: str, **more: Any) -> dict[str, Any]:
    case = {"name": name, "target": None, "kind": "step", "pairs": 9}
    return {"case": case, "ratio": 1.25, "spread": 0.07, "sides": [], **HERE, **more}


def cells(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_what_a_result_does_not_have_has_a_dash() -> None:
    found = [
        result("older"),
        result("newer", floor_ratio=0.875, compiled_ratio=1.5, commit={"id": "abcdefabcdef"}),
        result("memory", floor_ratio=None, spread=None, commit=None),
        result("stuck", compiled_ratio=None, compiled_skipped="too long"),
        result("seconds", ratio=None, sides=[{"median_s": 2.5}]),
    ]
    lines = results_table(found).splitlines()
    assert lines[0] == "# Fast, AVX2, 2 cores, 1 threads; torch 2.13"
    assert cells("\n".join(lines[1:])) == [
        ["case", "ratio", "floor", "target", "torch.compile", "spread", "commit"],
        ["memory", "1.250", "-", "-", "-", "-", "-"],
        ["newer", "1.250", "0.875", "-", "1.500", "7%", "abcdefa"],
        ["older", "1.250", "-", "-", "-", "7%", "-"],
        ["seconds", "2.50", "s", "-", "-", "-", "7%", "-"],
        ["stuck", "1.250", "-", "-", "skipped", "7%", "-"],
    ]


def test_results_of_an_earlier_commit_get_a_column() -> None:
    table = results_table([result("a"), result("b")], before=[result("b", ratio=1.125)])
    assert cells(table)[1:] == [
        ["case", "before", "after", "floor", "target", "torch.compile", "spread", "commit"],
        ["a", "-", "1.250", "-", "-", "-", "7%", "-"],
        ["b", "1.125", "1.250", "-", "-", "-", "7%", "-"],
    ]


def test_every_machine_has_a_table() -> None:
    other = {"machine": {**MACHINE, "cpu": "Slow"}}
    table = results_table([result("a", **other), result("b"), result("c", **other)])
    heads = [i for i, line in enumerate(table.splitlines()) if line.startswith("# ")]
    assert [cells(table)[i][1] for i in heads] == ["Fast,", "Slow,"]
    assert [row[0] for row in cells(table) if row and row[0] in "abc"] == ["b", "a", "c"]


def test_targets_are_those_of_the_cases_today() -> None:
    table = results_table([result("a"), result("b")], targets={"a": 1.5})
    assert [row[3] for row in cells(table)[2:]] == ["1.5", "-"]


def test_the_history_has_runs_of_cases_and_is_no_result() -> None:
    history = json.loads(HISTORY.read_text())
    names = {case.name for case in cases()}
    steps = {each["step"] for each in history["steps"]}
    for run in history["runs"]:
        assert run["case"] in names
        assert run["machine"] in history["machines"]
        assert set(run) <= {"case", "ratio", "machine", "step", "commit", "date", "note"}
        assert 0.5 < run["ratio"] < 2.5
        assert run.get("step") is None or run["step"] in steps
    assert all("case" in each for each in recorded(HISTORY.parent))
