"""What lowered code calls: the kernel of an op where it takes the call, else the op's reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from multiway.compiler.op import registry


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
        return op.reference

    def function(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            taken = kernel.portable or not torch.compiler.is_exporting()
        else:
            taken = not transforms()
        if not taken or kernel.refuses(*args, **kwargs) is not None:
            return op.reference(*args, **kwargs)
        return kernel.run(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "multiway.kernels"
    return function
