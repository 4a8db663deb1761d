"""Attention over depth three ways: in C, in torch's operators, and as it is usually written.

    python benchmarks/kernels_depth_attention.py [--repeats 9] [--json FILE]

It times forward and backward of the routers of all depths together, each over all sources up to its
own, with the gradients of sources, queries, key weights and gains. The ways take turns, so that
whatever else the machine does falls on all of them; medians, and ratios of medians to the formula,
are printed. So is the floor: the bytes that must pass between memory and processor at least, if one
router after the other reads its sources once for its outputs and once for its query's gradient, and
gradients of routers are read by four sources at a time, over the speed with which memory is read.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels import native
from multiway.runtime.kernels.depth_attention import depth_attention
from multiway.runtime.kernels.depth_attention.compiled import BATCH
from multiway.runtime.kernels.mix import append
from multiway.runtime.measure.allocator import keep_memory

CASES = [(2048, 256, 49, 1), (2048, 256, 49, 4), (2048, 256, 13, 1), (1024, 768, 25, 1)]
EPS = 1e-6
BASELINE = "formula"
Work = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: how long a way took, and its ratio to the formula."""

    case: str
    part: str
    way: str
    median_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Leaves of all routers: sources [1, tokens, D]; for each router query, weight and gain [D]."""

    sources: list[Tensor]
    vectors: list[list[Tensor]]
    groups: int

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.sources, *(x for each in self.vectors for x in each)]


def made(tokens: int, width: int, sources: int, groups: int) -> Inputs:
    def leaf(x: Tensor) -> Tensor:
        return x.requires_grad_()

    return Inputs(
        sources=[leaf(torch.randn(1, tokens, width)) for _ in range(sources)],
        vectors=[
            [leaf(torch.randn(width) / width**0.5), *(leaf(torch.ones(width)) for _ in range(2))]
            for _ in range(sources)
        ],
        groups=groups,
    )


def ours(inputs: Inputs) -> list[Tensor]:
    history, outputs = None, []
    settings = {"groups": inputs.groups, "eps": EPS, "norm": "rms_norm", "norm_eps": EPS}
    for x, (query, weight, gain) in zip(inputs.sources, inputs.vectors, strict=True):
        history = append(history, x, capacity=len(inputs.sources))
        outputs.append(
            depth_attention(history, query, weight, [gain], **settings, normed=1, raw=0)[0]
        )
    return outputs


def formula(inputs: Inputs) -> list[Tensor]:
    """Attention over depth as it is usually written."""
    outputs = []
    for depth, (query, weight, gain) in enumerate(inputs.vectors):
        stack = torch.stack(inputs.sources[: depth + 1])
        keys = stack * (stack.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight
        scores = (keys * query).unflatten(-1, (inputs.groups, -1)).sum(-1)
        parts = stack.unflatten(-1, (inputs.groups, -1))
        y = (scores.softmax(0).unsqueeze(-1) * parts).sum(0).flatten(-2)
        outputs.append(y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt() * gain)
    return outputs


def timed(function: Callable[[Inputs], list[Tensor]], inputs: Inputs) -> tuple[float, float]:
    """Milliseconds of forward and of backward."""
    grad = torch.ones_like(inputs.sources[0])
    start = time.perf_counter()
    outputs = function(inputs)
    middle = time.perf_counter()
    torch.autograd.grad(outputs, inputs.leaves, [grad] * len(outputs))
    return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3


def ways() -> dict[str, tuple[bool, Callable[[Inputs], list[Tensor]]]]:
    """way -> whether C kernels are on, and the function."""
    found = {"plain": (False, ours), BASELINE: (False, formula)}
    return found if native.library("depth_attention") is None else {"c": (True, ours), **found}


def medians(inputs: Inputs, repeats: int) -> Mapping[str, tuple[float, float]]:
    """Median milliseconds of forward and backward of each way; they take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways()}
    for turn in range(repeats + 1):
        for name, (on, function) in ways().items():
            native.enable(on)
            try:
                found = timed(function, inputs)
            finally:
                native.enable(True)
            if turn:  # the first warms up
                times[name].append(found)
    return {
        name: tuple(statistics.median(x) for x in zip(*each, strict=True))  # type: ignore[misc]
        for name, each in times.items()
    }


def memory_speed() -> float:
    """Bytes a millisecond that are read from memory, by the best of some sums."""
    x = torch.ones(1 << 26)
    best = min(_sum_ms(x) for _ in range(7))
    return x.numel() * x.element_size() / best


def _sum_ms(x: Tensor) -> float:
    start = time.perf_counter()
    x.sum()
    return (time.perf_counter() - start) * 1e3


def floor_ms(tokens: int, width: int, sources: int) -> float:
    """Milliseconds for the bytes that a stack must move."""
    rows = sources * (sources + 1) / 2
    forward = rows + 4 * sources  # average and its norm are written, which reads their lines too
    backward = rows + rows / BATCH + (4 + 4) * sources  # two gradients and an average; a gradient
    return (forward + backward) * tokens * width * 4 / memory_speed()


def measure(repeats: int) -> list[Row]:
    rows = []
    for tokens, width, sources, groups in CASES:
        case = f"{tokens} x {width}, {sources} routers, {groups} groups"
        found = medians(made(tokens, width, sources, groups), repeats)
        for part, choose in (("forward", (1, 0)), ("backward", (0, 1)), ("both", (1, 1))):
            by = {w: a * choose[0] + b * choose[1] for w, (a, b) in found.items()}
            for way, ms in by.items():
                ratio = ms / by[BASELINE]
                rows.append(Row(case=case, part=part, way=way, median_ms=ms, ratio=ratio))
                print(f"{case:38} {part:9} {way:8} {ms:9.1f} ms {ratio:6.3f}", flush=True)
        print(f"{case:38} {'floor':18} {floor_ms(tokens, width, sources):9.1f} ms", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    keep_memory()
    refused = native.refused("depth_attention")
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
