"""The functions that fused programs call, by op: see compiler/lowering/dispatch.py."""

from typing import Any

from multiway.compiler.graph.registry import registry
from multiway.compiler.lowering.dispatch import fast
from multiway.runtime.kernels import kernels

globals().update({name: fast(name) for name in registry() if name in kernels()})
__all__ = [name for name in registry() if name in kernels()]


def __getattr__(name: str) -> Any:
    """The function of a plugin's op that came later."""
    if name in registry() and name in kernels():
        return fast(name)
    raise AttributeError(f"module 'multiway.kernels' has no attribute {name!r}")
