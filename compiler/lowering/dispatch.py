"""What lowered code calls: the kernel of an op where it takes the call, else the op's reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from multiway.compiler.graph.layer_graph import LayerGraph, Record
from multiway.compiler.graph.op import Op
from multiway.compiler.graph.registry import registry
from multiway.specs import plugins

VARYING = frozenset("BTS")
"""Letters of signatures that are no widths, even where a program has a number for them: batch,
tokens and keys."""


def callee(
    op: Op, attrs: Mapping[str, Any], widths: Mapping[str, int], *, packed: bool = False
) -> Callable[..., Any]:
    """What a fused program calls for a node: its op's function in multiway/kernels.py, or the
    reference in multiway/ops.py where the kernel does not fit.

    packed: whether the program lays the weights of this node out once. A kernel that serves such
    weights only is not asked about others: between large products, which empty the caches, its
    answer takes 30 to 40 us.
    """
    from multiway.runtime.kernels import kernels

    kernel = kernels().get(op.name)
    if kernel is not None and kernel.packed and not packed:
        return op.public
    return op.public if misfit(op, attrs, widths) is not None else fast(op.name)


def misfit(op: Op, attrs: Mapping[str, Any], widths: Mapping[str, int]) -> str | None:
    """Why no node with these attributes and widths runs by the op's kernel, or None."""
    from multiway.runtime.kernels import kernels

    kernel = kernels().get(op.name)
    return None if kernel is None else kernel.fits(attrs, widths)


def widths_of(graph: LayerGraph, record: Record) -> dict[str, int]:
    """The sizes of a node by letter of its op's signature, but for batch and lengths."""
    types = graph.argument_types(record, graph.arguments(record.path))
    sizes = registry()[record.op].sizes(types, record.attrs)
    return {k: v for k, v in sizes.items() if isinstance(v, int) and k not in VARYING}


def fast(name: str) -> Callable[..., Any]:
    """The function of an op in fused programs, for nodes that its kernel fits. Which way a call
    goes is decided by its tensors, so a model may change device and type after it was compiled.
    """
    return _fast(name, plugins.modules())


@functools.cache
def _fast(name: str, _: tuple[ModuleType, ...]) -> Callable[..., Any]:
    import torch

    from multiway.runtime.kernels import kernels
    from multiway.runtime.kernels.kernel import anything, eager_transforms

    op, kernel = registry()[name], kernels().get(name)
    if kernel is None:
        return op.public
    reference, run, portable = op.reference, kernel.run, kernel.portable
    takes, traces = kernel.takes or anything, kernel.traces
    compiling, exporting = torch.compiler.is_compiling, torch.compiler.is_exporting

    def function(*args: Any, **kwargs: Any) -> Any:
        if compiling():
            if traces is None or not (portable or not exporting()):
                return reference(*args, **kwargs)
            taken = traces(*args, **kwargs) is None
        else:
            taken = not eager_transforms() and takes(*args, **kwargs) is None
        return run(*args, **kwargs) if taken else reference(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "multiway.kernels"
    return function
