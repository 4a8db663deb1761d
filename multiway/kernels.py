"""The functions that fused programs call, by op: see compiler/lowering/dispatch.py."""

from multiway.compiler.graph.registry import registry
from multiway.compiler.lowering.dispatch import fast
from multiway.runtime.kernels import kernels

globals().update({name: fast(name) for name in registry() if name in kernels()})
__all__ = [name for name in registry() if name in kernels()]
