"""What a measurement ran on: computer, versions, and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from multiway.runtime.memory import physical_bytes

_ROOT = Path(__file__).resolve().parents[2]
_WRITTEN = ("benchmarks/results", "docs")  # measuring itself writes there


def machine() -> dict[str, Any]:
    """The computer: CPU model, cores, threads that torch uses, bytes of memory, system."""
    allowed = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(allowed(0)) if allowed is not None else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": physical_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str | None]:
    """Versions of Python, torch, multiway and further packages; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "multiway", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit(root: Path = _ROOT) -> dict[str, Any] | None:
    """`id` of the checkout's commit and whether it was `changed`; None where there is none.

    Recorded results and documents are no change: a result is not of another code for those.
    """
    if not (root / ".git").exists():
        return None
    others = [f":(exclude){path}" for path in _WRITTEN]
    found = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--", ".", *others)
    return None if found is None else {"id": found, "changed": bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
