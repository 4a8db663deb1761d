"""A lock between processes: a file beside what one of them makes and the others wait for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL_S = 0.05


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[bool]:
    """Holds the lock inside, and gives whether it does. The file is there only while it is held.

    False after `wait_s` seconds in vain, and where the system or the file system has no locks: what
    is made must then be right without one. A process that ends lets go of it.
    """
    handle = _taken(path, time.monotonic() + wait_s)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: whoever waits sees that it is another file
            os.close(handle)


def _taken(path: Path, until: float) -> int | None:
    """The open file, locked, or None."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(handle)
                return None
            time.sleep(POLL_S)
        except OSError:  # a file system without locks
            os.close(handle)
            return None
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    """Whether an open file still stands under its name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
