"""How much memory this process may use: that of the machine, or less where a container says so."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path("/")


def total_bytes(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process may use at most, or None where the system does not say."""
    there = physical_bytes()
    limits = [limit for limit, _ in _cgroups(root)]
    return min([*limits, *([] if there is None else [there])], default=None)


def available_bytes(root: Path = ROOT) -> int | None:
    """Bytes that are free, or that the system would give back, or None where it does not say."""
    free = [max(limit - used, 0) for limit, used in _cgroups(root)]
    there = (
        _windows()[1] if sys.platform == "win32" else _field(root / "proc/meminfo", "MemAvailable:")
    )
    return min([*free, *([] if there is None else [there])], default=None)


def physical_bytes() -> int | None:
    """Bytes of memory in this machine."""
    if sys.platform == "win32":
        return _windows()[0]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of every control group above this process that has a limit.

    Of what is in use, files that the system only keeps in case they are read again do not count.
    Inside a container paths may be those outside: then only their ends' parents are there.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top, names = mount / "memory", v1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield from _cgroup(top.joinpath(*parts[:depth]), names)


def _cgroup(folder: Path, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    maximum, current, inactive = names
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        limit, used = (int((folder / name).read_text()) for name in (maximum, current))
        yield limit, used - (_field(folder / "memory.stat", inactive) or 0)


def _field(path: Path, name: str) -> int | None:
    """The bytes behind a name in a file of lines `NAME NUMBER [kB]`."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    found = next((line for line in lines if line and line[0] == name), None)
    return None if found is None else int(found[1]) * (1024 if found[-1] == "kB" else 1)


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available")),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows() -> tuple[int | None, int | None]:
    """Physical bytes of a machine with Windows, and those of them that are free."""
    status = _Status(length=ctypes.sizeof(_Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined, unused-ignore]
        return None, None
    return int(status.total), int(status.available)
