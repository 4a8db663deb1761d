"""From a C file to a loaded library: find a compiler, compile, cache, check, load."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch  # noqa: F401  its OpenMP runtime must be in the process before ours is looked up

from multiway.runtime.kernels.native.lock import locked

COMPILERS = ("cc", "gcc", "clang")
# Of -ffast-math only what cannot change a value: infinities and NaN must pass, and sums are
# reordered only where the source says so (`omp simd reduction`).
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-Wall", "-Werror=implicit"),
    # Where there are vectors of 64 bytes, compilers take half of one unless told otherwise: gelu
    # with a layer norm of 788 x 3072 takes 0.99 ms so, and 0.67 with whole ones.
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)
# What not every compiler has. Frames are probed page by page: one that is larger than what is left
# of a stack ends the process, and never writes into what lies beyond the guard page.
OPTIONAL = ("-fstack-clash-protection",)
HEADERS = Path(__file__).resolve().parent  # what C files share
TIMEOUT_S = 120


@dataclass(frozen=True)
class Refused:
    """Why there is no library."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A compiler, what `--version` says of it, and the folder that keeps what it makes."""

    compiler: str
    version: str
    folder: Path


@functools.cache
def sources() -> Mapping[str, Path]:
    """The C files in the folders beside this one, however deep, by name."""
    found: dict[str, Path] = {}
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.c")):
        assert path.stem not in found, f"two C files are called {path.name}"
        found[path.stem] = path
    return found


def toolchain(folder: Path | None = None) -> Toolchain | Refused:
    """The first compiler that answers. `folder` defaults to the user's cache folder."""
    for name in COMPILERS:
        compiler = shutil.which(name)
        done = _run([compiler, "--version"]) if compiler else Refused("")
        if compiler and not isinstance(done, Refused):
            return Toolchain(
                compiler=compiler, version=done, folder=folder or cache_folder(os.environ)
            )
    return Refused(f"no C compiler: none of {', '.join(COMPILERS)} was found")


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled files are kept between runs."""
    given = environment.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"
    return base / "multiway"


def load(source: Path, tools: Toolchain) -> ctypes.CDLL | Refused:
    """The library of a C file, from the cache or compiled. Never raises for the machine's sake."""
    try:
        refusal = _own_folder(tools.folder)
        if refusal is not None:
            return refusal
        target = tools.folder / f"{source.stem}-{_key(source, tools)}.so"
        loaded = _open(target)
        if isinstance(loaded, Refused):  # not there yet, or cut short, or of another machine
            with locked(target.with_suffix(".lock"), wait_s=TIMEOUT_S):
                loaded = _open(target)  # another process may have made it while this one waited
                if isinstance(loaded, Refused):
                    refusal = _compile(source, target, tools)
                    loaded = _open(target) if refusal is None else refusal
        return loaded
    except OSError as error:
        return Refused(f"{source.name}: {error}")


def _own_folder(folder: Path) -> Refused | None:
    """Makes the folder. What another user may write into is not loaded."""
    if not hasattr(os, "getuid"):
        return Refused("this system does not say who owns a file")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    others_write = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    if others_write or found.st_uid != os.getuid():
        return Refused(f"{folder} can be written by others")
    return None


def _key(source: Path, tools: Toolchain) -> str:
    """All that decides what the compiler makes: a hash of it names the file."""
    digest = hashlib.sha256()
    shared = sorted(HEADERS.glob("*.h"))
    texts = [*shared, *(p for p in sorted(source.parent.iterdir()) if p.suffix in (".c", ".h"))]
    for part in (source.name, *FLAGS, *OPTIONAL, tools.compiler, tools.version, _processor()):
        digest.update(part.encode() + b"\0")
    for path in texts:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


@functools.cache
def _processor() -> str:
    """What -march=native stands for here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(lines))])


def command(tools: Toolchain) -> list[str]:
    """The compiler with the flags it takes; a source and `-o` are to follow."""
    flags = [flag for flag in OPTIONAL if _takes(tools.compiler, flag)]
    return [tools.compiler, *FLAGS, *flags, f"-I{HEADERS}"]


@functools.cache
def _takes(compiler: str, flag: str) -> bool:
    """Whether it compiles nothing with this flag, and without a warning."""
    probe = [compiler, "-Werror", flag, "-x", "c", "-S", os.devnull, "-o", os.devnull]
    return not isinstance(_run(probe), Refused)


def _compile(source: Path, target: Path, tools: Toolchain) -> Refused | None:
    """Compiles into a file of our own and renames it, so that no other process sees half of it."""
    handle, name = tempfile.mkstemp(prefix=f"{source.stem}-", suffix=".tmp", dir=target.parent)
    os.close(handle)
    made = Path(name)
    try:
        done = _run([*command(tools), str(source), "-o", name, "-lm"])
        if isinstance(done, Refused):
            return Refused(f"{source.name}: {done.reason}")
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        made.chmod(0o700)
        os.replace(made, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
    return None


def _open(path: Path) -> ctypes.CDLL | Refused:
    """Loads a file that is whole. The loader itself would crash on one that is cut short."""
    if not path.is_file():
        return Refused(f"{path} is not there")
    content = path.read_bytes()
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        return Refused(f"{path} is damaged")
    before = openmp_runtimes()
    try:
        loaded = ctypes.CDLL(str(path))  # ctypes releases the GIL while a function of it runs
    except OSError as error:
        return Refused(str(error))
    added = openmp_runtimes() - before
    if before and added:  # two pools of threads would fight for the cores
        return Refused(f"it brings a second OpenMP runtime: {', '.join(sorted(added))}")
    return loaded


def openmp_runtimes() -> set[str]:
    """The OpenMP libraries in this process, where the system can tell."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return set()
    return set(re.findall(r"(/\S*/lib(?:gomp|omp|iomp)[^/\s]*\.so\S*)", maps))


def _run(command: list[str]) -> str | Refused:
    """What a command printed, or why it failed."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Refused(f"{command[0]}: {error}")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        first = next((line for line in said if "error" in line), said[0] if said else "")
        return Refused(f"{command[0]} failed: {first or f'exit {done.returncode}'}")
    return done.stdout
