"""All ops by name: those of compiler/ops, and the fused ones of compiler/fusions."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from multiway.compiler.graph.composed import callable_of
from multiway.compiler.graph.op import Op
from multiway.specs.errors import nearest


@functools.cache
def registry() -> Mapping[str, Op]:
    """Every op by name, in the order of the file names; fused ops come last."""
    found: dict[str, Op] = {}
    for folder in ("ops", "fusions"):
        package = importlib.import_module(f"multiway.compiler.{folder}")
        for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
            op = importlib.import_module(f"multiway.compiler.{folder}.{name}").OP
            assert op.name == name, f"compiler/{folder}/{name}.py defines {op.name}"
            assert op.composed == (folder == "fusions") and name not in found
            found[name] = op
    for name, op in found.items():
        setattr(call, name, callable_of(op))
    return found


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
