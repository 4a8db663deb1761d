"""All ops by name: those of compiler/ops, the fused ones of compiler/fusions, those of plugins."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from multiway.compiler.graph.composed import callable_of
from multiway.compiler.graph.op import Op
from multiway.specs import plugins
from multiway.specs.data_folders import refuse_twice
from multiway.specs.errors import nearest
from multiway.specs.language.parts import ACTIVATIONS


def registry() -> Mapping[str, Op]:
    """Every op by name, in the order of the file names; fused ops, then plugins', come last."""
    return _registry(plugins.modules())


def activations() -> tuple[str, ...]:
    """What a spec may name as an activation: those that `activation` knows, and elementwise ops."""
    return (*ACTIVATIONS, *(name for name, op in registry().items() if op.elementwise))


@functools.cache
def _registry(_: tuple[ModuleType, ...]) -> Mapping[str, Op]:
    found: dict[str, Op] = {}
    for folder in ("ops", "fusions"):
        package = importlib.import_module(f"multiway.compiler.{folder}")
        for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
            op = importlib.import_module(f"multiway.compiler.{folder}.{name}").OP
            assert op.name == name, f"compiler/{folder}/{name}.py defines {op.name}"
            assert op.composed == (folder == "fusions") and name not in found
            found[name] = op
    for op in plugins.parts("OP", Op):
        refuse_twice("op", op.name, f"plugin {op.reference.__module__}", _homes(found))
        found[op.name] = op
    for name, op in found.items():
        setattr(call, name, callable_of(op))
    return found


def _homes(ops: Mapping[str, Op]) -> dict[str, str]:
    return {name: op.reference.__module__ for name, op in ops.items()}


class _Call:
    """`call.NAME(...)` runs the reference of an op, or notes the call where types flow.

    The functions are attributes, set when the registry is read: torch.compile can follow them.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function that is not there yet. Raises AttributeError if there is no such op."""
        if not name.startswith("__") and name in registry():  # which makes all of them
            return self.__dict__[name]  # type: ignore[no-any-return]
        like = "" if name.startswith("__") else nearest(name, registry())
        hint = f"; the nearest is {like!r}" if like else ""
        raise AttributeError(f"there is no op {name!r}{hint}", name=name, obj=self)


call = _Call()
