"""The reference semantics of every op, by name: what lowered code calls."""

from typing import Any

from multiway.compiler.graph.registry import registry

globals().update({name: op.public for name, op in registry().items()})
__all__ = list(registry())


def __getattr__(name: str) -> Any:
    """The op of a plugin that came later."""
    if name in registry():
        return registry()[name].public
    raise AttributeError(f"module 'multiway.ops' has no attribute {name!r}")
