"""What a kernel is: a faster way to compute one op under stated conditions."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from multiway.specs import plugins
from multiway.specs.data_folders import refuse_twice

# Private, so looked for: without them a call inside a mode or a transform is taken as a plain one.
_transforms: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)
# Without it each device is asked for, which takes three times as long.
_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
_forward_ad: Any = torch.autograd.forward_ad
if not hasattr(_forward_ad, "_current_level"):
    _forward_ad = SimpleNamespace(_current_level=-1)
_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)

Widths = Mapping[str, int]
"""Sizes by letter of an op's signature: those that are numbers in every call."""
Fits = Callable[[Mapping[str, Any], Widths], str | None]
Guard = Callable[..., str | None]


def anything(*_: Any, **__: Any) -> None:
    """As `fits` or as a guard: no objection."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A way to compute an op. `run` takes and returns what the op's reference does, and is never
    called while `transforms()` holds.

    Whether it runs is asked in two places. Each answer is None for yes, or why not.

    fits: asked once for a node, when its program is lowered, of the node's attributes and widths
    (what letters of the signature stand for, where that is a number; batch and lengths are not
    among them). It says nothing of device and type, which a model may change later.
    takes: asked before each eager call, with the arguments of `run`, of nodes that it fits: device,
    type, autocast, sizes. It is cheap; what fails most often comes first. None: takes all.
    traces: the same while torch.compile or torch.export traces the call. It looks at no size, which
    would make a program for each length. None: takes none, the reference is traced.
    portable: the kernel is made of torch's own operators, so that an exported program may hold it.
    packed: it only serves weights that a program lays out once; other programs call the reference.
    """

    op: str
    run: Callable[..., Any]
    doc: str
    fits: Fits = anything
    takes: Guard | None = None
    traces: Guard | None = None
    portable: bool = False
    packed: bool = False


def autocasts(x: torch.Tensor) -> bool:
    """Whether autocast chooses the types of products on the device of x."""
    if not _any_autocast():
        return False
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
    return not torch.compiler.is_compiling() and eager_transforms()


def eager_transforms() -> bool:
    """`transforms` where nothing compiles."""
    return _transforms() or _forward_ad._current_level >= 0


def kernels() -> Mapping[str, Kernel]:
    """Every kernel by the op it computes: `KERNELS` of each module beside this one, and of each
    plugin."""
    return _kernels(plugins.modules())


@functools.cache
def _kernels(_: tuple[ModuleType, ...]) -> Mapping[str, Kernel]:
    package = importlib.import_module("multiway.runtime.kernels")
    found: dict[str, Kernel] = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(package.__path__)):
        loaded = importlib.import_module(f"multiway.runtime.kernels.{module}")
        for kernel in getattr(loaded, "KERNELS", ()):
            assert kernel.op not in found, f"two kernels for {kernel.op}"
            found[kernel.op] = kernel
    for kernel in plugins.parts("KERNELS", Kernel):
        homes = {op: each.run.__module__ for op, each in found.items()}
        refuse_twice("kernel for", kernel.op, f"plugin {kernel.run.__module__}", homes)
        found[kernel.op] = kernel
    return found
