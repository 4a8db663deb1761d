"""What keeps C files compiled: caches, processes at once, compilers that fail."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from multiway.runtime.kernels import native
from multiway.runtime.kernels.mix import compiled
from multiway.runtime.kernels.native import build
from multiway.runtime.kernels.native.lock import locked

needs_c = pytest.mark.skipif(
    native.library("mix") is None, reason=f"no C kernel: {native.refused('mix')}"
)


def tools_for(folder: Path) -> build.Toolchain:
    tools = build.toolchain(folder)
    assert isinstance(tools, build.Toolchain)
    return tools


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@needs_c
def test_a_file_is_compiled_once_and_found_again(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    loaded = build.load(source, tools_for(folder))
    assert not isinstance(loaded, build.Refused) and loaded.answer() == 42
    (made,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    changed = made.stat().st_mtime_ns
    assert not isinstance(build.load(source, tools_for(folder)), build.Refused)
    assert made.stat().st_mtime_ns == changed
    source.write_text("int answer(void) { return 43; }\n")
    loaded = build.load(source, tools_for(folder))
    assert not isinstance(loaded, build.Refused) and loaded.answer() == 43
    assert len(list(folder.iterdir())) == 2


@needs_c
def test_a_header_that_changes_is_read_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(build, "HEADERS", shared)
    source.write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    for number in (1, 2):
        (shared / "answer.h").write_text(f"#define ANSWER {number}\n")
        loaded = build.load(source, tools_for(tmp_path / "cache"))
        assert not isinstance(loaded, build.Refused) and loaded.answer() == number


@needs_c
@pytest.mark.parametrize(
    "damage",
    ["flipped", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "empty", "text"))],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, source: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    build.load(source, tools_for(folder))
    (made,) = folder.iterdir()
    whole = made.read_bytes()
    bad = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a library" * 9}
    flipped = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    made.unlink()  # this process has the old one mapped
    made.write_bytes(bad.get(damage, flipped))
    code = (
        "import sys; from pathlib import Path; from multiway.runtime.kernels.native import build\n"
        "tools = build.toolchain(Path(sys.argv[2]))\n"
        "print(build.load(Path(sys.argv[1]), tools).answer())\n"
    )
    assert run(code, str(source), str(folder)) == "42"
    assert made.read_bytes() == whole


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_c
@pytest.mark.slow
def test_processes_that_compile_at_once(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from multiway.runtime.kernels.native import build\n"
        "print(build.load(Path(sys.argv[1]), build.toolchain(Path(sys.argv[2]))).answer())\n"
    )
    command = [sys.executable, "-c", code, str(source), str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [each.communicate()[0].strip() for each in running] == ["42"] * 3
    assert [p.suffix for p in folder.iterdir()] == [".so"]


@needs_c
@pytest.mark.slow
def test_of_processes_at_once_one_compiles(tmp_path: Path, source: Path) -> None:
    tools = tools_for(tmp_path / "cache")
    log = tmp_path / "log"
    # What asks which flags it takes compiles nothing.
    told = f'case "$*" in *{source.name}*) echo compiled >> {log}; sleep 2;; esac'
    slow = fake(tmp_path, f'{told}; exec {tools.compiler} "$@"')
    code = (
        "import sys; from pathlib import Path; from multiway.runtime.kernels.native import build\n"
        "tools = build.Toolchain(compiler=sys.argv[2], version='0', folder=Path(sys.argv[3]))\n"
        "print('ready', flush=True); input()\n"
        "print(build.load(Path(sys.argv[1]), tools).answer())\n"
    )
    command = [sys.executable, "-c", code, str(source), slow.compiler, str(slow.folder)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for each in running:  # none begins before all could
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    for each in running:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    assert [each.communicate()[0].strip() for each in running] == ["42"] * 2
    assert log.read_text() == "compiled\n"
    assert [p.suffix for p in slow.folder.iterdir()] == [".so"]


@needs_c
def test_what_another_process_makes_is_waited_for(tmp_path: Path, source: Path) -> None:
    tools = tools_for(tmp_path / "made")
    build.load(source, tools)
    (made,) = tools.folder.iterdir()
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    with ThreadPoolExecutor(1) as threads:
        with locked(folder / made.with_suffix(".lock").name, wait_s=0) as held:
            assert held
            waiting = threads.submit(build.load, source, tools_for(folder))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            os.replace(made, folder / made.name)
            changed = (folder / made.name).stat().st_mtime_ns
        loaded = waiting.result(timeout=60)
    assert not isinstance(loaded, build.Refused) and loaded.answer() == 42
    assert (folder / made.name).stat().st_mtime_ns == changed
    assert [p.suffix for p in folder.iterdir()] == [".so"]


@needs_c
def test_a_process_that_never_ends_is_not_waited_for(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tools_for(tmp_path / "cache")
    build.load(source, tools)
    (made,) = tools.folder.iterdir()
    made.unlink()
    with locked(made.with_suffix(".lock"), wait_s=0):
        with locked(made.with_suffix(".lock"), wait_s=0) as held:
            assert not held
        monkeypatch.setattr(build, "locked", functools.partial(_impatient, locked))
        loaded = build.load(source, tools)
    assert not isinstance(loaded, build.Refused) and loaded.answer() == 42


def _impatient(inner: Any, path: Path, *, wait_s: float) -> Any:
    assert wait_s == build.TIMEOUT_S
    return inner(path, wait_s=0.1)


def fake(folder: Path, body: str) -> build.Toolchain:
    """A compiler that is a shell script."""
    script = folder / "fakecc"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return build.Toolchain(compiler=str(script), version="0", folder=folder / "cache")


def test_a_compiler_that_fails_is_a_reason(tmp_path: Path, source: Path) -> None:
    found = build.load(source, fake(tmp_path, "echo warm; echo 'error: no disk' >&2; exit 1"))
    assert isinstance(found, build.Refused) and found.reason.endswith("failed: error: no disk")
    assert found.reason.startswith("answer.c: ")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_writes_rubbish_is_a_reason(tmp_path: Path, source: Path) -> None:
    script = 'while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"'
    assert isinstance(build.load(source, fake(tmp_path, script)), build.Refused)


def test_no_compiler_and_a_compiler_that_is_gone_are_reasons(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = fake(tmp_path, "exit 0")
    Path(tools.compiler).unlink()
    assert isinstance(build.load(source, tools), build.Refused)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = build.toolchain()
    assert found == build.Refused("no C compiler: none of cc, gcc, clang was found")


def test_a_folder_that_cannot_be_used_is_a_reason(tmp_path: Path, source: Path) -> None:
    tools = fake(tmp_path, "exit 0")
    tools.folder.write_text("a file")
    assert isinstance(build.load(source, tools), build.Refused)
    tools.folder.unlink()
    tools.folder.mkdir()
    tools.folder.chmod(0o777)
    found = build.load(source, tools)
    assert isinstance(found, build.Refused) and "can be written by others" in found.reason


def test_the_cache_folder() -> None:
    assert build.cache_folder({"XDG_CACHE_HOME": "/x/y"}) == Path("/x/y/multiway")
    home = Path(os.path.expanduser("~")) / ".cache" / "multiway"
    assert build.cache_folder({}) == build.cache_folder({"XDG_CACHE_HOME": "rel"}) == home


@needs_c
def test_one_openmp_runtime_is_loaded() -> None:
    code = (
        "from multiway.runtime.kernels import native\n"
        "from multiway.runtime.kernels.native.build import openmp_runtimes\n"
        "before = openmp_runtimes()\n"
        "assert native.library('mix') is not None\n"
        "assert openmp_runtimes() == before and len(before) == 1, openmp_runtimes()\n"
    )
    run(code)


@needs_c
def test_a_second_openmp_runtime_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = iter([{"/a/libgomp.so.1"}, {"/a/libgomp.so.1", "/b/libomp.so.5"}])
    tools = tools_for(tmp_path / "cache")
    build.load(source, tools)
    monkeypatch.setattr(build, "openmp_runtimes", lambda: next(maps))
    (made,) = tools.folder.iterdir()
    found = build._open(made)
    assert found == build.Refused("it brings a second OpenMP runtime: /b/libomp.so.5")


def test_switching_c_off() -> None:
    with native.disabled():
        assert native.library("mix") is None
        assert native.refused("mix") == "C kernels are switched off"
        assert not compiled.available(torch.float64)
    assert (native.library("mix") is None) == (native.refused("mix") is not None)
    with pytest.raises(AssertionError, match=r"no C file is called nothing\.c"):
        native.library("nothing")
