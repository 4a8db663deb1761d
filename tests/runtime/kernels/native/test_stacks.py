"""C kernels and stacks: threads may have small ones, and a frame that jumps the guard page writes
into memory of others. Scratch is on the heap, and where there is no memory that is said.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from multiway.runtime.kernels import native
from multiway.runtime.kernels.attention.heads import compiled as heads
from multiway.runtime.kernels.experts import routers_compiled as routers
from multiway.runtime.kernels.native import build
from multiway.runtime.kernels.rows import gelu_compiled
from multiway.runtime.kernels.rows import norms_compiled as norms

PROGRAM = Path(__file__).with_name("small_stacks.py")
MOST_BYTES = 16384  # of a frame; a thread of musl has 128 KiB for all of them
# The processors of which a row of vectors, and so what is held on the stack, is as wide as it gets.
PROCESSORS = ("haswell", "skylake-avx512")


@pytest.mark.skipif(native.library("norms") is None, reason="no C kernels")
def test_every_kernel_runs_on_a_small_stack() -> None:
    compiled = {name for name in build.sources() if native.library(name) is not None}
    small = {"OMP_STACKSIZE": "256K", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **small},
    )
    assert done.returncode == 0, done.stderr  # -11: it wrote where there is no stack
    assert set(done.stdout.split()) == compiled


def gcc() -> str | None:
    """The compiler, if it is gcc for x86-64: others count frames in other ways, or not at all."""
    tools = build.toolchain()
    if isinstance(tools, build.Refused) or "Free Software Foundation" not in tools.version:
        return None
    return tools.compiler if platform.machine() in ("x86_64", "AMD64") else None


@pytest.mark.slow
@pytest.mark.skipif(gcc() is None, reason="no gcc for x86-64")
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", build.sources())
def test_frames_are_small(name: str, processor: str, tmp_path: Path) -> None:
    tools = build.toolchain(tmp_path)
    assert isinstance(tools, build.Toolchain)
    given = [f"-march={processor}" if f == "-march=native" else f for f in build.command(tools)]
    limit, out = f"-Werror=frame-larger-than={MOST_BYTES}", str(tmp_path / "out.o")
    source = str(build.sources()[name])
    done = subprocess.run(
        [*given, limit, "-c", source, "-o", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def no_memory(call: Any) -> int:
    return 1


@pytest.mark.skipif(native.library("norms") is None, reason="no C kernels")
def test_threads_without_memory_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("float", "double", "bfloat16")
    names = [f"{n}_{way}" for n in ("norms", "rotate_heads") for way in ("forward", "backward")]
    names += ["statistics_forward", "statistics_backward"]
    functions = {f"{name}_{kind}": no_memory for name in names for kind in kinds}
    functions |= {"gelu_forward": no_memory, "gelu_backward": no_memory}
    monkeypatch.setattr(native, "library", lambda _: SimpleNamespace(**functions))
    x = torch.randn(2, 3, 8)
    vector = x[0, 0]
    norm = norms.Plan(norm="rms_norm", eps=0.0)
    of_gelu = gelu_compiled.Plan(norm="", eps=0.0)
    head = heads.Plan(heads=2, norm="", eps=0.0, pairs="half")
    grad = x.view(2, 3, 2, 4).transpose(1, 2)
    for call in (
        lambda: norms.forward(norm, x, vector, None),
        lambda: norms.backward(norm, x, vector, None, x),
        lambda: gelu_compiled.forward(of_gelu, x, None, None, x),
        lambda: gelu_compiled.backward(of_gelu, x, None, x),
        lambda: heads.forward(head, x, None, None, None, None),
        lambda: heads.backward(head, grad, x, None, None, None, None),
        lambda: routers.statistics("softmax", x, x, None, None),
        lambda: routers.statistics_backward("softmax", x, None, [None] * 3),
    ):
        with pytest.raises(MemoryError, match="1 threads got no memory to work in"):
            call()
