"""A block of a model: its parameters, and the code of every program that runs it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx, nn


class Calls(dict[tuple[str, str], fx.GraphModule]):
    """The code of calls by program and path. torch.export would put back a plain dictionary as it
    was before a program was made."""


class Block(nn.Module):
    """The parameters of a block under their names, and one call of it in each program.

    graphs: by program and path of the call: a program with several passes calls a block in each,
    as `image.blocks.3` and `text.blocks.3`. They read the parameters of this module, so they are
    no modules of it, and are not pickled: a program makes them again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphs = Calls()

    def forward(self, *values: Any, program: str, path: str) -> Any:
        """What the block gives at one place of a program for the values that it reads there."""
        try:
            code = self.graphs[program, path]
        except KeyError:
            raise KeyError(
                f"{path} has no code for the program {program!r}: a program that is copied apart "
                "from its model does not run; copy the model, and ask it for its programs"
            ) from None
        return code.forward(*values)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graphs": Calls()}


def block_in(module: nn.Module) -> Block:
    """The block that a place of a model holds, within whatever was put around it there: torch's
    checkpoint wrapper, for instance. What a program calls is the outermost."""
    return next(each for each in module.modules() if isinstance(each, Block))


class Blocks(nn.ModuleList):
    """All blocks in order. Those in a row that differ in sizes only are shown as one."""

    def __repr__(self) -> str:
        texts = [repr(each) for each in self]
        lines, start = [], 0
        for _, group in itertools.groupby(texts, lambda text: _NUMBER.sub("", text)):
            alike = list(group)
            last = start + len(alike) - 1
            where = f"({start}): " if len(alike) == 1 else f"({start}-{last}): {len(alike)} x "
            lines += (where + _ranges(alike)).split("\n")
            start = last + 1
        return "\n  ".join(["Blocks(", *lines]) + "\n)"


_NUMBER = re.compile(r"\d+")


def _ranges(texts: Sequence[str]) -> str:
    """Texts that differ in numbers only as one: `4..16` for 4 in the first and 16 in the last."""
    last = iter(_NUMBER.findall(texts[-1]))

    def both(first: re.Match[str]) -> str:
        end = next(last)
        return first[0] if first[0] == end else f"{first[0]}..{end}"

    return _NUMBER.sub(both, texts[0])


def calls_of(program: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The path and the code of every call of a block in a program, in order."""
    for node in program.graph.nodes:
        if node.op == "call_module":
            yield str(node.kwargs["path"]), called(program, node)


def called(program: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The code that a call of a block runs."""
    block = block_in(program.get_submodule(str(node.target)))
    return block.graphs[str(node.kwargs["program"]), str(node.kwargs["path"])]
