"""The table of recorded benchmark results, of files that earlier versions wrote too."""

from __future__ import annotations

from typing import Any

from written import results_table


def result(name: str, **more: Any) -> dict[str, Any]:
    case = {"name": name, "target": None, "kind": "step", "pairs": 9}
    return {"case": case, "ratio": 1.25, "spread": 0.07, "sides": [], **more}


def test_the_floor_is_shown_and_a_result_without_one_has_a_dash() -> None:
    found = [
        result("older"),
        result("newer", ratio_of_medians=1.5, floor_ratio=0.875),
        result("memory", floor_ratio=None, spread=None),
    ]
    lines = results_table(found).splitlines()
    assert (
        "  ".join(lines[0].split()) == "case  in  pairs  of  medians  floor  target  spread  pairs"
    )
    assert [line.split() for line in lines[1:]] == [
        ["memory", "1.250", "-", "-", "-", "-", "9"],
        ["newer", "1.250", "1.500", "0.875", "-", "7%", "9"],
        ["older", "1.250", "-", "-", "-", "7%", "9"],
    ]
