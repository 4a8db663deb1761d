"""benchmarks/run.py: what a case records. No time is asserted."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def runner() -> Any:
    """benchmarks/run.py as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("multiway_benchmarks", BENCHMARKS / "run.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("multiway_benchmarks", None)
        sys.modules.pop("cases", None)


def step(runner: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    settings = {"name": "it", "doc": "", "a": "mudd-pythia-test", "b": "pythia-test", "pairs": 9}
    case = runner.Case(**{**settings, "length": 8, **more})
    return case, runner._step_case(case, quick=True)


@pytest.mark.parametrize(("train", "per"), [(False, 1.0), (True, 4.0)])
def test_a_case_records_the_floor_of_its_first_side_over_its_baseline(
    runner: Any, train: bool, per: float
) -> None:
    case, found = step(runner, train=train, per=per, pairs=10)
    first, _, floor = found["sides"]
    names = ["mudd-pythia-test", "pythia-test", "gemm of mudd-pythia-test"]
    assert [side["name"] for side in found["sides"]] == names
    pairs = zip(floor["seconds"], found["beside_floor"], strict=True)
    assert found["floor_ratio"] == pytest.approx(statistics.median(a / b for a, b in pairs) / per)
    # Backward makes each product twice: once for its input, once for its weight.
    per_token = floor["gemm_flops"] / first["tokens"]
    assert per_token > (3 if train else 1) * 2 * 2 * (4 * 64 * 64 + 2 * 64 * 128)
    line = runner._line(case, found)
    assert f"floor {found['floor_ratio']:.3f}" in line
    assert floor["peak_live_bytes"] is None


def test_where_the_baseline_is_the_floor_it_is_measured_once(runner: Any) -> None:
    _, found = step(runner, a="beit3-test", b="gemm", head="features")
    assert [side["name"] for side in found["sides"]] == ["beit3-test", "gemm of beit3-test"]
    assert found["floor_ratio"] == 1.0


def test_peaks_and_compile_times_have_no_floor(runner: Any) -> None:
    case, found = step(runner, kind="memory", train=True)
    assert found["floor_ratio"] is None
    assert "floor     -" in runner._line(case, found)


def test_every_step_has_a_baseline_and_so_a_floor(runner: Any) -> None:
    assert all(case.b for case in runner.CASES if case.kind != "compile")


def test_a_step_is_measured_beside_torch_compile_of_its_reference(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(runner.torch, "compile", lambda module: given.append(module) or module)
    case, found = step(runner, train=True)
    assert "compiled_ratio" not in found and not given
    found = runner._step_case(case, quick=True, compiled=True)
    (module,) = given
    assert "kernels." not in module.code  # as built: no pass, no kernel
    pairs = zip(found["beside_compiled"], found["compiled_seconds"], strict=True)
    assert found["compiled_ratio"] == statistics.median(a / b for a, b in pairs)
    shown = f"over torch.compile {found['compiled_ratio']:.3f}"
    assert runner._line(case, found).endswith(shown)


def test_torch_compile_that_fails_or_takes_too_long_is_skipped_with_its_reason(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(module: Any) -> Any:
        raise RuntimeError("no compiler\nand more")

    def sleeps(module: Any) -> Any:
        return lambda *_: time.sleep(30)

    monkeypatch.setattr(runner, "COMPILE_LIMIT_S", 0.2)
    for compile, reason in (
        (fails, "RuntimeError: no compiler"),
        (sleeps, "the first step takes more than 0.2 s"),
    ):
        monkeypatch.setattr(runner.torch, "compile", compile)
        case, _ = step(runner)
        found = runner._step_case(case, quick=True, compiled=True)
        assert found["compiled_ratio"] is None
        assert found["compiled_skipped"] == reason
        assert found["ratio"] > 0
        assert f"torch.compile skipped: {reason}" in runner._line(case, found)
