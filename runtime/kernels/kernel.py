"""What a kernel is: a faster way to compute one op under stated conditions."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

# Private, so looked for: without them a call inside a mode or a transform is taken as a plain one.
_transforms: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)
_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A way to compute an op. `run` takes and returns what the op's reference does, and is never
    called while `transforms()` holds.

    refuses: takes the same arguments; why this call cannot be taken, or None. It looks at devices,
    types and sizes only, and is cheap: it runs before every call.
    portable: the kernel is made of torch's own operators, so that an exported program may hold it.
    packed: it only serves weights that a program lays out once; other programs call the reference.
    """

    op: str
    run: Callable[..., Any]
    refuses: Callable[..., str | None]
    doc: str
    portable: bool = False
    packed: bool = False


def autocasts(x: torch.Tensor) -> bool:
    """Whether autocast chooses the types of products on the device of x."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def no_autocast() -> AbstractContextManager[None]:
    """A context in which autocast does not choose types on the CPU. torch's own takes 0.3 ms to
    enter and leave between large products, so it is entered where there is something to turn off.
    """
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def traced() -> bool:
    """Whether something follows the operators that run: then they must all be torch's."""
    return torch.compiler.is_compiling() or _modes() > 0


def transforms() -> bool:
    """Whether torch.func or forward-mode differentiation looks into operators. Our own, and torch's
    attention on the CPU, have no rules for it: tangents would be dropped, or calls fail.
    """
    if torch.compiler.is_compiling():
        return False
    return _transforms() or getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


@functools.cache
def kernels() -> Mapping[str, Kernel]:
    """Every kernel by the op it computes: `KERNELS` of each module beside this one."""
    package = importlib.import_module("multiway.runtime.kernels")
    found: dict[str, Kernel] = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(package.__path__)):
        loaded = importlib.import_module(f"multiway.runtime.kernels.{module}")
        for kernel in getattr(loaded, "KERNELS", ()):
            assert kernel.op not in found, f"two kernels for {kernel.op}"
            found[kernel.op] = kernel
    return found
