"""Adds a hidden to the list of those before it."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def append(history: Any = None, x: Any = None, *, capacity: int) -> Any:
    return [*(history or []), x]


def formula(history: Any = None, x: Any = None, *, capacity: int) -> Any:
    import numpy as np

    found = [] if history is None else [np.copy(each) for each in history]
    found.append(x)
    return found


def _start(letters: dict[str, Any]) -> dict[str, Any]:
    return {} if "L" in letters else {"L": 0}


OP = Op(
    signature="history?[L,*]:list, x[*] -> history[L+1,*]:list",
    reference=append,
    formula=formula,
    doc="The list with x at its end; without a list, one that holds x alone.",
    attrs={
        "capacity": Attr("how long the list will get, for its layout; 0: not known", 0, hint=True)
    },
    derive=_start,
    tokenwise=("history", "x"),
    memory="list",
    samples=[
        Sample(shapes={"history": [(2, 3), (2, 3)], "x": (2, 3)}),
        Sample(shapes={"x": (2, 3)}, attrs={"capacity": 4}),
    ],
    rejects=[
        Reject(
            shapes={"history": [(2, 3)], "x": (2, 4)},
            error="* is [2,3] in history but [2,4] in x",
        )
    ],
)
