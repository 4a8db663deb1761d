"""Keeps the C library from giving large tensors' memory back to the system after each use.

glibc maps every block above a threshold (32 MiB at most) and unmaps it when it is freed, and gives
the free top of its heap back too. A step that allocates the same large tensors again and again then
pays a page fault for every 4 KiB, in both what is measured and what it is measured against.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Parameters of mallopt, from glibc's malloc.h. The threshold of mapping cannot be above 32 MiB, so
# that only a maximum of 0 mappings keeps larger blocks on the heap.
_PARAMETERS = {
    "M_TRIM_THRESHOLD": (-1, -1),  # -1: the top of the heap is never given back
    "M_TOP_PAD": (-2, 64 * 2**20),  # grow by this much more than asked for
    "M_MMAP_THRESHOLD": (-3, 32 * 2**20),
    "M_MMAP_MAX": (-4, 0),
}
_REPLACEMENTS = ("jemalloc", "tcmalloc", "mimalloc")


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """What `keep_memory` has set: mallopt's parameters by name, empty with the `reason` why."""

    library: str
    settings: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.settings)

    def record(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


@functools.cache
def keep_memory() -> Allocator:
    """Freed memory stays with this process, for all that it allocates from now on.

    It holds for the whole process and cannot be taken back, so nothing calls it on import; a
    benchmark and a training run are where it belongs. The process keeps the most memory that it
    ever had at once. Where the C library is not glibc, or another allocator stands in for it,
    nothing is set and the result, which is false, says why. A second call changes nothing.
    """
    library = _glibc()
    if library is None:
        return Allocator(library="unknown", reason="the C library is not glibc")
    name = f"glibc {library.gnu_get_libc_version().decode()}"
    if (other := _replacement()) is not None:
        return Allocator(library=name, reason=f"{other} stands in for malloc")
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    refused = [
        key for key, (code, value) in _PARAMETERS.items() if not library.mallopt(code, value)
    ]
    settings = {key: value for key, (_, value) in _PARAMETERS.items() if key not in refused}
    reason = f"mallopt refused {', '.join(refused)}" if refused else ""
    return Allocator(library=name, settings=settings, reason=reason)


def _glibc() -> Any | None:
    """The C library of this process, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version.restype = ctypes.c_char_p
        return library if hasattr(library, "mallopt") else None
    except (OSError, TypeError, AttributeError):  # no such library, or none that can be asked
        return None


def _replacement() -> str | None:
    """Another malloc that was loaded before glibc's, if there is one."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    files = {line.rpartition("/")[2] for line in maps.splitlines() if "/" in line}
    return next((name for name in _REPLACEMENTS if any(name in file for file in files)), None)
