"""What all tests share: one thread, the same draws in every run, and where the time went."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from multiway.runtime.kernels import native
from multiway.runtime.kernels.native import build

# Tests are no package: what they share is found in these folders.
TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / each) for each in ("", "compiler", "compiler/assemble", "compiler/ops")]

import sanitizing  # noqa: E402  stands in one of them

# Collecting makes many objects that stay; the collector would go through them again and again.
gc.disable()

# One thread: the tensors are tiny, and the order of sums must not depend on the computer.
torch.set_num_threads(1)

# The default run draws the same examples every time; the fuzz tests draw others on each run.
hypothesis.settings.register_profile("multiway", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("multiway")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sanitize", action="store_true", help="check every access of C kernels")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("sanitize"):
        build.FLAGS += sanitizing.FLAGS
        build.TIMEOUT_S *= 10
        failed = {name: reason for name in build.sources() if (reason := native.refused(name))}
        if failed:  # a test would only be skipped
            pytest.exit(f"C with sanitizers does not load: {failed}", returncode=1)


def pytest_collection_finish() -> None:
    """What stands now lives as long as the run: not to look at it saves a quarter of the time."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


def _cpu_s() -> float:
    """Seconds of processor time of this process and of those that it waited for."""
    return sum(os.times()[:4])


_before_s = 0.0


def pytest_runtest_logstart() -> None:
    """What was spent before, on collecting or idly, is no test's."""
    global _before_s
    _before_s = _cpu_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    global _before_s
    report = yield
    now_s = _cpu_s()
    report.cpu_s = now_s - _before_s  # travels from a worker with the report
    _before_s = now_s
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """With --durations, sums them by folder; processor time does not depend on what else runs."""
    if config.getoption("durations") is None:
        return
    wall, cpu = Counter[str](), Counter[str]()
    for report in (each for some in terminalreporter.stats.values() for each in some):
        if hasattr(report, "cpu_s"):
            path = report.nodeid.split("::")[0]
            for folder in {path.rpartition("/")[0], "tests"}:
                wall[folder] += report.duration
                cpu[folder] += report.cpu_s
    terminalreporter.section("seconds by folder")
    terminalreporter.write_line("    wall     cpu")
    for folder, seconds in sorted(cpu.items()):
        terminalreporter.write_line(f"{wall[folder]:8.1f}{seconds:8.1f}  {folder}")
