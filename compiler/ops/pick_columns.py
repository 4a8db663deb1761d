"""Some columns of a table of mixing weights."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NEWEST
from multiway.compiler.graph.op import Attr, Op, Reject, Sample


def pick_columns(static: Any, *, columns: list[int]) -> Any:
    return static[:, columns]


def formula(static: Any, *, columns: list[int]) -> Any:
    import numpy as np

    return np.array([[row[i] for i in columns] for row in static])


OP = Op(
    signature="static[C,M] -> weights[C,L]",
    reference=pick_columns,
    formula=formula,
    doc="The weights of the sources that are read, of a table with a column for every source.",
    attrs={"columns": Attr("which, in order", letter="L")},
    params={"static": NEWEST},
    samples=[
        Sample(shapes={"static": (2, 4)}, attrs={"columns": [1, 3]}),
        Sample(shapes={"static": (2, 4)}, attrs={"columns": [3, 0, 2]}),
    ],
    rejects=[
        Reject(
            shapes={"static": (4,)},
            attrs={"columns": [1, 3]},
            error="static has 1 axes, needs [C,M]: [4]",
        )
    ],
)
