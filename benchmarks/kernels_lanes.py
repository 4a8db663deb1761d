"""A site of parallel lanes four ways: in C, in torch's operators, as the ops it is made of, and
what a plain residual does in its place.

    python benchmarks/kernels_lanes.py [--repeats 15] [--json FILE]

A site goes from one sublayer's output to the next one's input: it mixes and writes the old lanes,
makes the weights of the new ones, reads them and normalises what is read. "residual" adds y to x
and normalises. Forward alone, and forward with backward of every input. The ways of a case take
turns, so that whatever else the machine does falls on all of them; medians, the middle half of the
times over the median, and ratios of medians to the ops are printed. Times alone mean little on a
shared machine: what a site costs a model is its time beside the residual's, over that of a layer.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiway.compiler.graph.registry import registry
from multiway.runtime.kernels import native
from multiway.runtime.kernels.lanes import fused_lanes
from multiway.runtime.kernels.rows.norms import rms_norm
from multiway.runtime.measure.allocator import keep_memory

BATCH, LENGTH, LANES, WIDTH = 4, 512, 4, 256
BASELINE = "ops"
KINDS = ("static", "hc", "frac", "mhc")
Work = Callable[[], Any]
SITE: dict[str, Any] = {
    **{"ends": "lanes", "weights": "tanh", "eps": 1e-5, "factors": [1.0, 2.0]},
    **{"floors": [1e-6, 0.0], "balance": {}, "norm": "rms_norm", "norm_eps": 1e-6, "kept": 1},
    **{"goes_on": 1, "reads": 1, "normed": 1, "raw": 0},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: how long a way took, and its ratio to the ops."""

    case: str
    work: str
    way: str
    median_ms: float
    spread: float
    ratio: float


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def made(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and attributes of a site."""
    n, lead = LANES, (BATCH, LENGTH)
    d, r = (WIDTH // n, n) if kind == "frac" else (WIDTH, 1)
    given = {"lanes": leaf(*lead, n, d), "y": leaf(*lead, WIDTH), "gains": [leaf(WIDTH)]}
    if kind == "static":
        static = {"mix": leaf(n, n), "write": leaf(n, 1), "read": leaf(n, 1)}
        return {**given, **static}, {**SITE, "weights": "given", "goes_on": 0}
    given |= {"mix": leaf(*lead, n, n), "write": leaf(*lead, n, 1)}
    given["scales"] = [leaf(), leaf(), leaf()]
    if kind == "mhc":
        columns = (n, n * n, n)
        balance = {"count": n, "start": "softmax", "iterations": 20, "eps": 1e-6}
        given["matrices"] = [leaf(c, n * d) for c in columns]
        given["biases"] = [leaf(c) for c in columns]
        attrs = {"weights": "gates", "balance": {**balance, "transpose": False}}
        return given, {**SITE, **attrs}
    columns = (r, n, 1)
    given |= {"gain": leaf(d), "bias": leaf(d), "matrices": [leaf(c, d) for c in columns]}
    given["statics"] = [leaf(n, c) for c in columns]
    return given, {**SITE, "reads": r, "ends": "pieces" if kind == "frac" else "lanes"}


def flat(given: Mapping[str, Any]) -> list[Tensor]:
    return [x for v in given.values() for x in (v if isinstance(v, list) else [v])]


def switched(on: bool, work: Work) -> Work:
    """The work with C kernels on or off."""

    def run() -> Any:
        native.enable(on)
        try:
            return work()
        finally:
            native.enable(True)

    return run


def works(forward: Work, leaves: Sequence[Tensor]) -> dict[str, Work]:
    """Forward without gradients, and forward with backward."""
    grads = [torch.randn_like(y) for y in forward()]

    def alone() -> Any:
        with torch.no_grad():
            return forward()

    return {"forward": alone, "both": lambda: torch.autograd.grad(forward(), leaves, grads)}


def ways(kind: str) -> dict[str, dict[str, Work]]:
    """way -> work -> a call."""
    given, attrs = made(kind)
    reference = registry()["fused_lanes"].reference
    fused = works(lambda: fused_lanes(**given, **attrs), flat(given))
    x, y, gain = leaf(BATCH, LENGTH, WIDTH), leaf(BATCH, LENGTH, WIDTH), leaf(WIDTH)

    def residual() -> Any:
        total = x + y
        return total, rms_norm(total, gain, eps=1e-6)

    found = {
        "plain": {name: switched(False, work) for name, work in fused.items()},
        BASELINE: works(lambda: reference(**given, **attrs), flat(given)),
        "residual": works(residual, [x, y, gain]),
    }
    if native.library("lanes") is not None:
        found = {"c": {name: switched(True, work) for name, work in fused.items()}, **found}
    return found


def timed(calls: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def measure(repeats: int) -> list[Row]:
    rows = []
    for kind in KINDS:
        found = ways(kind)
        for work in ("forward", "both"):
            times = timed({way: each[work] for way, each in found.items()}, repeats)
            base = statistics.median(times[BASELINE])
            for way, each in times.items():
                low, middle, high = statistics.quantiles(each, n=4)
                row = Row(
                    case=f"{kind}, {BATCH} x {LENGTH} x {WIDTH}, {LANES} lanes",
                    work=work,
                    way=way,
                    median_ms=middle,
                    spread=(high - low) / middle,
                    ratio=middle / base,
                )
                rows.append(row)
                numbers = f"{middle:8.2f} ms {row.spread:6.2f} {row.ratio:6.2f}"
                print(f"{kind:7} {work:8} {way:9} {numbers}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    keep_memory()
    refused = native.refused("lanes")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, C: {refused or 'yes'}")
    rows = measure(given.repeats)
    if given.json:
        facts = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.platform(),
            "c": refused or "yes",
        }
        given.json.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
