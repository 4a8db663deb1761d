"""What lowered code calls: the kernel of an op where it takes the call, else the op's reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from multiway.compiler.graph.registry import registry


def callee(name: str, *, packed: bool) -> Callable[..., Any]:
    """What a fused program calls for an op. packed: whether the program lays the weights of this
    call out once.

    A kernel that serves such weights only is not asked about others: between large products, which
    empty the caches, its answer takes 30 to 40 us.
    """
    from multiway.runtime.kernels import kernels

    kernel = kernels().get(name)
    return registry()[name].public if kernel and kernel.packed and not packed else fast(name)


@functools.cache
def fast(name: str) -> Callable[..., Any]:
    """The function of an op in fused programs. Which way a call goes is decided by its tensors, so
    a model may change device and type after it was compiled.
    """
    import torch

    from multiway.runtime.kernels import kernels
    from multiway.runtime.kernels.kernel import transforms

    op, kernel = registry()[name], kernels().get(name)
    if kernel is None:
        return op.public
    reference, run, refuses = op.reference, kernel.run, kernel.refuses
    compiling = torch.compiler.is_compiling

    def function(*args: Any, **kwargs: Any) -> Any:
        if compiling():
            taken = kernel.portable or not torch.compiler.is_exporting()
        else:
            taken = not transforms()
        if not taken or refuses(*args, **kwargs) is not None:
            return reference(*args, **kwargs)
        return run(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "multiway.kernels"
    return function
