"""The reference semantics of every op, by name: what lowered code calls."""

from multiway.compiler.graph.registry import registry

globals().update({name: op.public for name, op in registry().items()})
__all__ = list(registry())
