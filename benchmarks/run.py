"""python benchmarks/run.py [CASE...]: runs cases of benchmarks/cases.py and writes their results.

Both sides of a case run in turn in one process, with the same settings of the allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case

import multiway as mw
from multiway.compiler.passes.plan_memory import saved_bytes
from multiway.compiler.pipeline import Options, run
from multiway.runtime.measure.allocator import keep_memory
from multiway.runtime.measure.machine import commit, machine, versions
from multiway.runtime.measure.neox import neox_side
from multiway.runtime.measure.sides import (
    Side,
    Work,
    floor_side,
    measure_sides,
    model_side,
    program_for,
    record,
    sample_inputs,
    step,
    tokens_in,
)
from multiway.runtime.measure.times import MIN_PAIRS, interleave, peak_live_bytes

HERE = Path(__file__).resolve().parent
QUICK = {"depth": 2}  # of --quick: small enough to see in a minute that every case runs


COMPILE_LIMIT_S = 300.0  # for the first step of a program under torch.compile


class TooLong(BaseException):
    """Not an Exception: torch.compile catches those and goes on."""


class Skipped(Exception):
    """A case that cannot run here; the text says why."""


def main() -> int:
    options = _options()
    chosen = [case for case in CASES if _is_chosen(case, options.cases)]
    unknown = [p for p in options.cases if not fnmatch.filter([c.name for c in CASES], p)]
    if unknown:
        print(f"no case is called {', '.join(unknown)}; --list shows all", file=sys.stderr)
        return 2
    if options.pairs is not None and options.pairs < MIN_PAIRS:
        print(f"--pairs must be at least {MIN_PAIRS}", file=sys.stderr)
        return 2
    if options.list:
        for case in chosen:
            print(f"{case.name:<28} {case.doc}")
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    allocator = keep_memory()
    print(f"allocator: {allocator.library} {dict(allocator.settings) or allocator.reason}")
    folder = options.json or (None if options.quick else HERE / "results")
    for case in chosen:
        case = _quick(case) if options.quick else case
        case = dataclasses.replace(case, pairs=options.pairs or case.pairs)
        _run_and_write(case, options.quick, folder, options.compiled)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="a name or a pattern; default all")
    parser.add_argument("--list", action="store_true", help="the cases, and run none")
    parser.add_argument(
        "--quick", action="store_true", help="2 layers, 9 pairs: shows that it runs, writes nothing"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="steps beside torch.compile of the reference, too"
    )
    parser.add_argument("--json", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--pairs", type=int, metavar="N", help="at least 9; default: the case's")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    return parser.parse_args()


def _is_chosen(case: Case, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)


def _quick(case: Case) -> Case:
    return dataclasses.replace(case, pairs=9, batch=1, length=min(case.length, 32))


def _run_and_write(case: Case, quick: bool, folder: Path | None, compiled: bool) -> None:
    start = time.perf_counter()
    try:
        with _kernels(case):
            if case.kind == "compile":
                result = _compile_case(case)
            else:
                result = _step_case(case, quick, compiled)
    except Skipped as reason:
        print(f"{case.name:<28} skipped: {reason}")
        return
    result = {"case": dataclasses.asdict(case), "quick": quick, **result, **_facts()}
    result["seconds_in_all"] = time.perf_counter() - start
    print(_line(case, result), flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=2) + "\n"
        (folder / f"{case.name}.json").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _kernels(case: Case) -> Iterator[None]:
    """Without the kernels in C where a case says so."""
    if case.native:
        yield
        return
    try:
        from multiway.runtime.kernels import native
    except ImportError:
        raise Skipped("there are no kernels in C to switch off") from None
    with native.disabled():
        yield


def _spec(name: str, quick: bool = False) -> mw.Spec:
    """A file or a zoo name; `NAME+WIRING` with another wiring."""
    name, _, wiring = name.partition("+")
    source = HERE / "specs" / name if name.endswith(".yaml") else name
    return mw.load(
        source, set=(QUICK if quick else {}) | ({"wiring.use": wiring} if wiring else {})
    )


def _step_case(case: Case, quick: bool, compiled: bool = False) -> dict[str, Any]:
    """The time of a step beside another, or the peaks of both. compiled: and of the first beside
    torch.compile."""
    sides = _sides(case, quick)
    if case.kind == "memory":
        peaks = [peak_live_bytes(side.run) for side in sides]
        rows = [
            {"name": side.name, "peak_live_bytes": peak, "spec": side.spec}
            for side, peak in zip(sides, peaks, strict=True)
        ]
        ratio = peaks[0] / peaks[1] / case.per
        return {"ratio": ratio, "floor_ratio": None, "spread": None, "sides": rows}
    found = measure_sides(sides, pairs=case.pairs, memory=True)
    a_times, b_times = (each.times for each in found)
    rows = [record(found[0]), record(found[1], found[0])]
    if sides[1].floor is None:  # behind the others: it changes what lies where, and so their times
        floor, beside = measure_sides([floor_side(sides[0]), sides[1]], pairs=MIN_PAIRS)
        rows.append(record(floor))
    else:
        floor = beside = found[1]
    return {
        "ratio": a_times.paired_ratio(b_times) / case.per,
        "ratio_of_medians": a_times.ratio(b_times) / case.per,
        # What `a` would be at with no time between its products: the least that can be aimed at.
        "floor_ratio": floor.times.paired_ratio(beside.times) / case.per,
        "beside_floor": list(beside.times.seconds),  # of `b`, in the floor's rounds
        "spread": max(a_times.spread, b_times.spread),
        "sides": rows,
        **(_beside_compiled(case, quick, sides[0]) if compiled else {}),
    }


def _beside_compiled(case: Case, quick: bool, first: Side) -> dict[str, Any]:
    """The time of `a` over that of its reference form under torch.compile, in rounds of their own;
    or why there is none."""
    try:
        side = _compiled_side(case, quick)
        with _limit(COMPILE_LIMIT_S):
            side.run()
    except TooLong:
        reason = f"the first step takes more than {COMPILE_LIMIT_S:g} s"
        return {"compiled_ratio": None, "compiled_skipped": reason}
    except Exception as error:  # whatever a compiler may raise: the other numbers stand
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        return {"compiled_ratio": None, "compiled_skipped": reason}
    found, theirs = measure_sides([first, side], pairs=MIN_PAIRS)
    return {
        "compiled_ratio": found.times.paired_ratio(theirs.times),
        "compiled_seconds": list(theirs.times.seconds),
        "beside_compiled": list(found.times.seconds),
    }


def _compiled_side(case: Case, quick: bool) -> Side:
    """The reference form of `a`, each program as torch.compile makes it."""
    spec = _spec(case.a, quick).for_head(case.head)
    model = mw.compile(spec, fuse=False, dtype=getattr(torch, case.dtype))
    work = Work(batch=case.batch, length=case.length, train=case.train)
    program = program_for(model, work)
    inputs = sample_inputs(model, program, work)
    module = torch.compile(model.programs[program])

    def loss() -> torch.Tensor:
        found: torch.Tensor = module(*inputs.values())[0]
        return found

    return Side(
        name=f"torch.compile of {spec.name}",
        run=step(model, lambda: module(*inputs.values()), loss if case.train else None),
        tokens=tokens_in(model, program, inputs),
        program=program,
        spec=model.spec.text(),
    )


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises TooLong inside when the time is over."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _sides(case: Case, quick: bool) -> list[Side]:
    work = Work(batch=case.batch, length=case.length, train=case.train)
    dtype = getattr(torch, case.dtype)

    def compiled(name: str, **options: Any) -> Side:
        spec = _spec(name, quick).for_head(case.head)
        make = lambda device: mw.compile(spec, device=device, dtype=dtype, **options)  # noqa: E731
        _, plus, wiring = name.partition("+")
        return model_side(f"{spec.name}{plus}{wiring}", make, work)

    options = {"mode": case.mode, "without": case.without}
    first = compiled(case.a, **options, **_planned(case, quick))
    if case.b == "gemm":
        return [first, floor_side(first)]
    if case.b != "hf":
        return [first, compiled(case.b, **options)]
    try:
        return [first, neox_side(_spec(case.a, quick).for_head(case.head), work, dtype=dtype)]
    except mw.MultiwayError as error:
        raise Skipped(error.problems[0].message) from None


def _planned(case: Case, quick: bool) -> dict[str, Any]:
    """A memory budget from what the other side keeps."""
    if case.budget is None:
        return {}
    sizes = {"B": case.batch, "T": case.length}
    graph = mw.build(_spec(case.b, quick).for_head(case.head), program="loss")
    kept = saved_bytes(run(graph, Options())[-1].graph, sizes)
    total = sum(each.bytes for each in kept.values())
    return {"memory_budget": int(case.budget * total), "sizes": sizes}


def _compile_case(case: Case) -> dict[str, Any]:
    """Seconds from reading a spec to all its programs; apart, those of the very first time."""
    names = [name for name in (case.a, case.b) if name]
    start = time.perf_counter()
    _all_programs(case.a)
    first = time.perf_counter() - start
    runs = {name: (lambda name=name: _all_programs(name)) for name in names}
    times = interleave(runs, pairs=case.pairs, warmup=1)
    a = times[case.a]
    found: dict[str, Any] = {
        "first_s": first,
        "sides": [
            {"name": n, "median_s": t.median, "spread": t.spread, "seconds": list(t.seconds)}
            for n, t in times.items()
        ],
        "specs": {name: _spec(name).text() for name in names},
        "spread": max(t.spread for t in times.values()),
    }
    ratio = a.paired_ratio(times[case.b]) / case.per if case.b else None
    return {"ratio": ratio, "floor_ratio": None, **found}


def _all_programs(name: str) -> None:
    model = mw.compile(_spec(name), device="meta")
    for program in model.programs:
        _ = model.programs[program]


def _facts() -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": versions(["transformers"]),
        "allocator": keep_memory().record(),
        "commit": commit(),
    }


def _line(case: Case, result: dict[str, Any]) -> str:
    ratio, spread, floor = result["ratio"], result["spread"], result["floor_ratio"]
    if ratio is None:
        shown = f"{result['sides'][0]['median_s']:.3g} s"
    else:
        shown = f"{ratio:.3f}"
    target = "-" if case.target is None else f"{case.target:g}"
    compiled_ratio = result.get("compiled_ratio")
    beside = f"  over torch.compile {compiled_ratio:.3f}" if compiled_ratio else ""
    if reason := result.get("compiled_skipped"):
        beside = f"  torch.compile skipped: {reason}"
    peaks = [side.get("peak_live_bytes") for side in result["sides"]]
    peak = " / ".join(f"{each / 2**20:.1f}" for each in peaks if each is not None)
    seconds = [side.get("compile_s") for side in result["sides"]]
    compiled = " / ".join(f"{each:.2f}" for each in seconds if each is not None)
    return (
        f"{case.name:<28} {shown:>8}  target {target:>4}  "
        f"floor {'-' if floor is None else f'{floor:.3f}':>5}  "
        f"spread {'-' if spread is None else f'{spread:.1%}':>6}  peak MiB {peak or '-'}  "
        f"compile s {compiled or '-'}{beside}"
    )


if __name__ == "__main__":
    sys.exit(main())
