"""Equal nodes are computed once, but for those that draw random numbers."""

from __future__ import annotations

from typing import Any

import pytest

from multiway.compiler.graph.layer_graph import LayerGraph, Record
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.graph.types import Tensor
from multiway.compiler.passes.share_common import share_common


@pytest.mark.parametrize(
    ("op", "attrs", "left"), [("activation", {"kind": "relu"}, 1), ("jitter", {"eps": 0.1}, 2)]
)
def test_what_is_random_equals_nothing(op: str, attrs: dict[str, Any], left: int) -> None:
    graph = LayerGraph(name="forward", params={})
    (x,) = graph.add(Record(path="inputs.x", op="input", outputs=(Tensor((2, 3)),)), {})
    twice = [
        graph.add(Record(path=f"blocks.0.{name}", op=op, attrs=attrs), {"x": x})[0] for name in "ab"
    ]
    graph.add(Record(path="blocks.0.sum", op="add"), {"a": twice[0], "b": twice[1]})
    graph.add(Record(path="outputs", op="output"), {"y": graph.sources("blocks.0.sum")["a"]})
    made = share_common(graph, Tally())
    assert sum(record.op == op for record in made) == left
