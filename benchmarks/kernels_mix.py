"""The depth mix three ways: in C, as batched products, and as a sum of products.

    python benchmarks/kernels_mix.py [--repeats 15] [--json FILE]

"one mix" times the last mix of a stack, forward and backward, with the gradients of its sources
added to buffers that exist. "stack" times forward and backward of the mixes of all depths together,
which is where the L (L + 1) / 2 gradients of sources are added up. The ways of a case take turns,
so that whatever else the machine does falls on all of them; medians, and ratios of medians to the
sum of products, are printed. Times alone mean little on a shared machine.
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
from multiway.runtime.kernels.mix import append, fused_mix, op
from multiway.runtime.kernels.mix.plan import Inputs, Plan, Wanted

CASES = [(2048, 256, 12), (2048, 256, 25), (1024, 768, 12)]
PLAN = Plan(norm="rms_norm", eps=1e-6, normed=(0, 1, 2), raw=(3,))
WAYS = 4
BASELINE = "products"
Work = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: how long a way took, and its ratio to the sum of products."""

    case: str
    work: str
    way: str
    median_ms: float
    ratio: float


def products(inputs: Inputs, plan: Plan) -> list[Tensor]:
    """The mix as it is usually written."""
    w = inputs.weights
    streams = [
        sum((w[..., c, i, None] * x for i, x in enumerate(inputs.history)), torch.zeros(()))
        for c in range(WAYS)
    ]
    normed = []
    for c, gain in zip(plan.normed, inputs.gains, strict=True):
        scale = (streams[c].square().mean(-1, keepdim=True) + plan.eps).rsqrt()
        normed.append(streams[c] * scale * gain)
    return [*normed, *(streams[c] for c in plan.raw)]


def made(tokens: int, width: int, sources: int) -> Inputs:
    return Inputs(
        history=[torch.randn(1, tokens, width) for _ in range(sources)],
        weights=torch.randn(1, tokens, WAYS, sources) / sources,
        gains=[torch.ones(width) for _ in PLAN.normed],
        biases=[],
    )


def switched(on: bool, work: Work) -> Work:
    """The work with C kernels on or off."""

    def run() -> Any:
        native.enable(on)
        try:
            return work()
        finally:
            native.enable(True)

    return run


def one_mix(inputs: Inputs) -> dict[str, dict[str, Work]]:
    """work -> way -> a call."""
    buffers = [torch.zeros_like(x) for x in inputs.history]
    wanted = Wanted(sources=[True] * len(buffers), weights=True, into=buffers)
    cotangents = [torch.randn_like(inputs.history[0]) for _ in PLAN.outputs]
    stacked = torch.stack(list(inputs.history))
    leaves = [x.clone().requires_grad_() for x in (*inputs.history, inputs.weights, *inputs.gains)]
    sources = len(buffers)
    tracked = Inputs(
        history=leaves[:sources],
        weights=leaves[sources],
        gains=leaves[sources + 1 :],
        biases=[],
    )
    outputs = products(tracked, PLAN)

    def back() -> None:
        grads = torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)
        for buffer, grad in zip(buffers, grads, strict=False):
            buffer.add_(grad)

    def forward() -> Any:
        return op.forward(inputs, PLAN, stacked)

    def backward() -> Any:
        return op.backward(cotangents, inputs, PLAN, wanted, stacked)

    return {
        "forward": ways(forward, lambda: products(inputs, PLAN)),
        "backward": ways(backward, back),
    }


def stack(inputs: Inputs) -> dict[str, dict[str, Work]]:
    """Mixes of every depth, forward and backward."""
    leaves = [x.clone().requires_grad_() for x in inputs.history]
    deep = len(leaves)
    weights = [inputs.weights[..., : i + 1].clone().requires_grad_() for i in range(deep)]
    gains = [x.clone().requires_grad_() for x in inputs.gains]
    grad = torch.randn_like(leaves[0])

    def ours() -> None:
        history, outputs = None, []
        for x, w in zip(leaves, weights, strict=True):
            history = append(history, x, capacity=deep)
            outputs.extend(fused_mix(history, w, gains, **asdict(PLAN)))
        torch.autograd.grad(outputs, [*leaves, *weights, *gains], [grad] * len(outputs))

    def plainly() -> None:
        outputs: list[Tensor] = []
        for i, w in enumerate(weights):
            read = Inputs(history=leaves[: i + 1], weights=w, gains=gains, biases=[])
            outputs.extend(products(read, PLAN))
        torch.autograd.grad(outputs, [*leaves, *weights, *gains], [grad] * len(outputs))

    return {"stack": ways(ours, plainly)}


def ways(ours: Work, baseline: Work) -> dict[str, Work]:
    found = {"plain": switched(False, ours), BASELINE: baseline}
    return found if native.library("mix") is None else {"c": switched(True, ours), **found}


def medians(calls: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}


def measure(repeats: int) -> list[Row]:
    rows = []
    for tokens, width, sources in CASES:
        inputs = made(tokens, width, sources)
        case = f"{tokens} x {width}, {sources} sources"
        for work, calls in {**one_mix(inputs), **stack(inputs)}.items():
            turns = repeats if work != "stack" else max(2, repeats // 5)
            found = medians(calls, turns)
            for way, ms in found.items():
                ratio = ms / found[BASELINE]
                rows.append(Row(case=case, work=work, way=way, median_ms=ms, ratio=ratio))
                print(f"{case:24} {work:9} {way:9} {ms:9.2f} ms {ratio:6.2f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    refused = native.refused("mix")
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
