"""The Python code that torch.fx writes for a lowered graph, with one change.

The lines that read one parameter each become one call that reads them all
(runtime/parameters/lookup.py).
"""

from __future__ import annotations

import re
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen

from multiway.runtime.parameters.lookup import parameters

_READ = re.compile(r"(\w+) = self\.([\w.]+)\n")
_NO_NAME = re.compile(r'getattr\((self[\w.]*), "(\w+)"\)')  # a part of a path such as 0
_FUNCTION = "multiway_parameters"


class _ReadTogether(CodeGen):
    def additional_globals(self) -> list[tuple[str, Any]]:
        return [(_FUNCTION, parameters)]


def read_together(graph: fx.Graph) -> None:
    """Lets the code of a graph, now and after every change, read its first attributes at once."""
    graph.set_codegen(_ReadTogether())
    graph.on_generate_code(lambda _: _joined)


def plain_code(graph: fx.Graph) -> str:
    """The code of a graph with a line for every attribute."""
    with graph.on_generate_code(lambda _: lambda body: body):
        return str(graph.python_code(root_module="self").src)


def _joined(body: list[str]) -> list[str]:
    """Lines of a function: those at its beginning that read attributes are made one."""
    lines = "".join(body).splitlines(keepends=True)
    found, end = [], 0
    for i, line in enumerate(lines):
        read = line
        while (dotted := _NO_NAME.sub(r"\1.\2", read)) != read:
            read = dotted
        if match := _READ.fullmatch(read):
            found.append(match)
            end = i + 1
        elif not line.startswith("#"):  # torch.fx marks with comments which node a line is of
            break
    if len(found) < 2:
        return lines
    names, paths = ", ".join(each[1] for each in found), tuple(each[2] for each in found)
    return [f"{names} = {_FUNCTION}(self, {paths})\n", *lines[end:]]
