"""A compiled model as one readable Python file that runs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx

from multiway.compiler.lowering.codegen import plain_code
from multiway.runtime.block import calls_of

# fx writes a call of block 1: getattr(self.blocks, "1")(x, program = 'loss', path = 'blocks.1')
_CALL = re.compile(r"""getattr\(self\.blocks, "\d+"\)\((.*), program = '.*', path = '(.*)'\)""")

_HEADER = '''"""{name}, head {head}: written by multiway {version}.

Every class is one program or one block of it; names are paths of the spec. The calls are the
reference semantics in multiway.ops, or kernels of the same ops in multiway.kernels. `assemble`
gives the classes their parameters:

    import multiway as mw
    model = mw.compile("spec.yaml", head="{head}")
    program = assemble("{program}", model)
"""

import torch
from multiway import kernels, ops
from torch import nn

'''

_FOOTER = '''
PROGRAMS = {programs}


def assemble(program: str, model: nn.Module) -> nn.Module:
    """A program around the parameters of a model that has them under their spec paths."""
    parts = PROGRAMS[program]
    root = parts[""]()
    root.calls = {}
    for name, child in model.named_children():
        root.add_module(name, child)
    for path, part in parts.items():
        if path:
            root.calls[path] = block = part()
            place = ".".join(path.split(".")[-2:])
            for name, child in model.get_submodule(place).named_children():
                block.add_module(name, child)
    return root
'''


def listing(programs: Mapping[str, fx.GraphModule], *, name: str, head: str, version: str) -> str:
    """The text of model.py. Blocks with the same code share a class."""
    first = next(iter(programs))
    text = _HEADER.format(name=name, head=head, version=version, program=first)
    classes: dict[str, str] = {}
    table: dict[str, dict[str, str]] = {}
    for program, module in programs.items():
        table[program] = {}
        for path, part in [*calls_of(module), ("", module)]:
            code = readable(part)
            if code not in classes:
                classes[code] = _class_name(program, path)
                text += f"\nclass {classes[code]}(nn.Module):\n{_indent(code)}\n\n"
            table[program][path] = classes[code]
    return text + _FOOTER.replace("{programs}", _table(table))


def readable(module: fx.GraphModule) -> str:
    """Its code without the lines' `x = None` tails, calling `ops.linear` and so on; blocks by path:
    `self.calls["blocks.1"](x)`."""
    code = _CALL.sub(r'self.calls["\2"](\1)', plain_code(module.graph))
    code = re.sub(r";  (\w+ = )+None(?=$|\n)", "", code)
    code = code.replace("multiway_kernels_", "kernels.")
    return code.replace("multiway_ops_", "ops.").strip()


def _class_name(program: str, path: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[._]", f"{program}.{path}") if part)


def _indent(code: str) -> str:
    return "\n".join(f"    {text}".rstrip() for text in code.splitlines())


def _table(table: Mapping[str, Mapping[str, str]]) -> str:
    rows = []
    for program, parts in table.items():
        entries = "".join(f'        "{path}": {cls},\n' for path, cls in parts.items())
        rows.append(f'    "{program}": {{\n{entries}    }},\n')
    return "{\n" + "".join(rows) + "}"
