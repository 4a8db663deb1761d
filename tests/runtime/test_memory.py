"""How much memory there is: of the machine, of control groups, and what refuses to take more."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from multiway.runtime import memory
from multiway.runtime.parameters import packed

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 32 of them free."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {32 * GIB // 1024} kB\n")
    monkeypatch.setattr(memory, "physical_bytes", lambda: 64 * GIB)
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def group(folder: Path, limit: object, used: int, inactive: int, version: int = 2) -> None:
    first = version == 1
    write(folder / ("memory.limit_in_bytes" if first else "memory.max"), limit)
    write(folder / ("memory.usage_in_bytes" if first else "memory.current"), used)
    prefix = "total_" if first else ""
    write(folder / "memory.stat", f"anon 7\n{prefix}inactive_file {inactive}\nfile 9")


def test_without_control_groups_it_is_that_of_the_machine(root: Path) -> None:
    assert (memory.total_bytes(root), memory.available_bytes(root)) == (64 * GIB, 32 * GIB)
    (root / "proc/meminfo").unlink()
    assert memory.available_bytes(root) is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_limit_of_the_groups_above_counts(root: Path, version: int) -> None:
    none = "max" if version == 2 else 9223372036854771712
    write(
        root / "proc/self/cgroup",
        "3:cpu:/other\n5:cpuset,memory:/a/b" if version == 1 else "0::/a/b",
    )
    top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    group(top / "a/b", none, GIB, 0, version)
    assert memory.total_bytes(root) == 64 * GIB
    group(top / "a", 4 * GIB, 3 * GIB, GIB, version)  # 2 GiB are used, 1 holds files
    group(top, 8 * GIB, 3 * GIB, 0, version)
    assert (memory.total_bytes(root), memory.available_bytes(root)) == (4 * GIB, 2 * GIB)
    group(top / "a", 4 * GIB, 5 * GIB, 0, version)
    assert memory.available_bytes(root) == 0


def test_inside_a_container_the_path_may_be_that_outside(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/../docker/1234")
    group(root / "sys/fs/cgroup", 2 * GIB, GIB, 0)
    assert (memory.total_bytes(root), memory.available_bytes(root)) == (2 * GIB, GIB)


def test_windows_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel32:
        @staticmethod
        def GlobalMemoryStatusEx(pointer: object) -> int:
            status = pointer._obj  # type: ignore[attr-defined]
            assert status.length == ctypes.sizeof(status) == 64
            status.total, status.available = 16 * GIB, 5 * GIB
            return 1

    class Windll:
        kernel32 = Kernel32

    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(ctypes, "windll", Windll, raising=False)
    assert memory.physical_bytes() == 16 * GIB
    assert memory.available_bytes(Path("nowhere")) == 5 * GIB


def test_this_machine_says_something() -> None:
    total, free = memory.total_bytes(), memory.available_bytes()
    assert total is None or free is None or 0 <= free <= total


def test_copies_of_weights_take_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100)
    assert packed._fits(50) and not packed._fits(51)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert packed._fits(1 << 60)
