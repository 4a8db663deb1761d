"""The reference semantics of every op, by name: what lowered code calls."""

from multiway.compiler.graph.op import registry

globals().update({name: op.reference for name, op in registry().items()})
__all__ = list(registry())
