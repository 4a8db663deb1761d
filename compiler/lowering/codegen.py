"""The Python code that torch.fx writes for a lowered graph, with one change.

The lines that read one parameter each become one call that reads them all
(runtime/parameters/lookup.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen

from multiway.runtime.parameters.lookup import parameters

_FUNCTION = "multiway_parameters"


class _ReadTogether(CodeGen):
    """Writes the nodes at the beginning that read attributes as one line under the `def`.

    torch.fx has no public place for it: `_gen_python_code` is where it hands out the nodes. Were
    that called otherwise, code would have a line for every attribute, and compute the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.together = True
        self.line = ""

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [(_FUNCTION, parameters)]

    def _gen_python_code(
        self, nodes: Iterable[fx.Node], root_module: str, *args: Any, **kwargs: Any
    ) -> Any:
        first = _first_reads(nodes) if self.together else []
        if len(first) < 2:
            first, self.line = [], ""
        else:
            names, paths = ", ".join(map(repr, first)), tuple(str(each.target) for each in first)
            self.line = f"\n    {names} = {_FUNCTION}({root_module}, {paths})"
        told = set(first)
        others: Any = [each for each in nodes if each not in told]
        return super()._gen_python_code(others, root_module, *args, **kwargs)

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        return super().gen_fn_def(*args, **kwargs) + self.line


def _first_reads(nodes: Iterable[fx.Node]) -> Sequence[fx.Node]:
    """What reads attributes before anything is called."""
    found = []
    for node in nodes:
        if node.op == "get_attr":
            found.append(node)
        elif node.op != "placeholder":
            break
    return found


def read_together(graph: fx.Graph) -> None:
    """Lets the code of a graph, now and after every change, read its first attributes at once."""
    graph.set_codegen(_ReadTogether())


def plain_code(graph: fx.Graph) -> str:
    """The code of a graph with a line for every attribute."""
    codegen = graph._codegen
    before = getattr(codegen, "together", False)
    try:
        codegen.together = False  # type: ignore[attr-defined]
        return str(graph.python_code(root_module="self").src)
    finally:
        codegen.together = before  # type: ignore[attr-defined]
