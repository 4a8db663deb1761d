"""The tests of kernels once more, with C that checks every access and every undefined operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sanitizing

from multiway.runtime.kernels.native import build

KERNELS = Path(__file__).resolve().parents[1]
# Memory that no one gives back is not looked for: torch and Python keep theirs.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "PYTHONMALLOC": "malloc",
}


def runtime() -> str | None:
    """What must be in the process before all others: gcc's address sanitizer, and C++'s library,
    whose exceptions it watches."""
    tools = build.toolchain()
    if isinstance(tools, build.Refused) or "Free Software Foundation" not in tools.version:
        return None
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [tools.compiler, f"-print-file-name={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(done.stdout.strip())
    return " ".join(found) if all(map(os.path.isabs, found)) else None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(runtime() is None, reason="no gcc with sanitizers"),
]


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **OPTIONS, "LD_PRELOAD": str(runtime())},
    )


def test_a_write_behind_the_end_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "beyond.c"
    source.write_text("void beyond(float *x, long n) { x[n] = 1.0f; }\n")
    code = (
        "import ctypes, sys; from pathlib import Path; import torch\n"
        "from multiway.runtime.kernels.native import build\n"
        f"build.FLAGS += {sanitizing.FLAGS}\n"
        "found = build.load(Path(sys.argv[1]), build.toolchain(Path(sys.argv[2])))\n"
        "x = torch.zeros(int(sys.argv[3]))\n"
        "found.beyond(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(16))\n"
    )
    good, bad = (sanitized("-c", code, str(source), str(tmp_path / "c"), n) for n in ("17", "16"))
    assert good.returncode == 0, good.stderr
    assert bad.returncode != 0 and "heap-buffer-overflow" in bad.stderr


def test_kernels_stay_in_their_memory() -> None:
    options = ("-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--sanitize")
    marks = "not slow and not gpu and not fuzz"
    own = f"--ignore={KERNELS / 'native'}"
    done = sanitized("-m", "pytest", *options, "-m", marks, str(KERNELS), own)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
