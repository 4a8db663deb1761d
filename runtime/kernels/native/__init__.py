"""C kernels: compiled when first used, where there is a compiler, and kept in a cache folder.

A folder of `runtime/kernels` may hold C files; `library("mix")` is `mix.c`, compiled and loaded.
Processes that want one file at once compile it once: the others wait (native/lock.py).
Nothing here is required: without a compiler `library` returns None and `refused` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

from multiway.runtime.kernels.native.build import Refused, load, sources, toolchain

__all__ = ["disabled", "enable", "library", "refused"]

_lock = threading.Lock()
_found: dict[str, ctypes.CDLL | Refused] = {}
_enabled = True


def library(name: str) -> ctypes.CDLL | None:
    """The loaded C file of this name, or None where it cannot be had. The first call compiles."""
    if not _enabled:
        return None
    found = _found.get(name) or _load(name)
    return None if isinstance(found, Refused) else found


def refused(name: str) -> str | None:
    """Why `library(name)` is None, or None if it is not."""
    if not _enabled:
        return "C kernels are switched off"
    found = _found.get(name) or _load(name)
    return found.reason if isinstance(found, Refused) else None


def enable(on: bool) -> None:
    """Use C kernels, or only what is made of torch's operators."""
    global _enabled
    _enabled = on


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """No C kernels inside, in any thread."""
    before = _enabled
    enable(False)
    try:
        yield
    finally:
        enable(before)


def _load(name: str) -> ctypes.CDLL | Refused:
    with _lock:
        if name not in _found:
            source = sources().get(name)
            assert source is not None, f"no C file is called {name}.c"
            tools = toolchain()
            _found[name] = tools if isinstance(tools, Refused) else load(source, tools)
        return _found[name]
