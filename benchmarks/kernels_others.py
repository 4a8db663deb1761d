"""Time of the kernels over that of their decompositions, interleaved: attention to norms.

Absolute times depend on the hour; the ratios (median of rounds, A B A B) are what is claimed. On a
machine that others use, one thread: with more the waits of the threads for each other are measured.

    OMP_NUM_THREADS=1 python benchmarks/kernels_others.py [--only NAME] [--rounds 11] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiway.compiler.ops.attention import attention as attention_reference
from multiway.compiler.ops.cross_entropy import cross_entropy
from multiway.compiler.ops.rms_norm import rms_norm as rms_norm_reference
from multiway.compiler.ops.rotary import rotary
from multiway.compiler.ops.split_heads import split_heads
from multiway.runtime.kernels import native
from multiway.runtime.kernels.attention.heads import rotate_heads
from multiway.runtime.kernels.attention.sdpa import attention
from multiway.runtime.kernels.linear.packed_linear import packed_linear
from multiway.runtime.kernels.loss.linear_cross_entropy import linear_cross_entropy
from multiway.runtime.kernels.rows.norms import rms_norm

Compute = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Ways to compute one thing, the first of them the baseline, all on the same inputs."""

    name: str
    size: str
    ways: dict[str, Compute]
    inputs: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A result: time over that of the baseline."""

    name: str
    size: str
    way: str
    forward: float
    training: float


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def without_c(compute: Compute) -> Compute:
    def computed(*inputs: Tensor) -> Any:
        with native.disabled():
            return compute(*inputs)

    return computed


def attention_cases() -> Iterator[Case]:
    for batch, heads, key_heads, length, causal in (
        (8, 12, 12, 197, False),
        (2, 12, 12, 512, True),
        (2, 12, 4, 512, True),
    ):
        mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
        yield Case(
            name="attention",
            size=f"{batch} x {heads}/{key_heads} x {length} x 64, mask, causal={causal}",
            ways={
                "decomposition": lambda *x, m=mask, c=causal: attention_reference(*x, m, causal=c),
                "kernel": lambda *x, m=mask, c=causal: attention(*x, m, causal=c),
            },
            inputs=[numbers(batch, h, length, 64) for h in (heads, key_heads, key_heads)],
        )


def linear_cases() -> Iterator[Case]:
    sizes = ((2048, 256, (256,) * 3), (2048, 256, (682,) * 2), (948, 768, (768,) * 3))
    for tokens, width, widths in (*sizes, (1, 768, (768,) * 3)):
        count = len(widths)
        apart = [nn.Parameter(torch.randn(n, width)) for n in widths]
        joined = torch.randn(sum(widths), width).split(list(widths))
        yield Case(
            name="packed_linear",
            size=f"{tokens} x {width} -> {count} x {widths[0]}",
            ways={
                "one by one": lambda x, *w, n=count: [nn.functional.linear(x, e) for e in w[:n]],
                "kernel": lambda x, *w, n=count: packed_linear(x, w[:n]),
                "adjacent": lambda x, *_, w=joined: packed_linear(x, w),
            },
            inputs=[numbers(tokens, width), *apart],
        )


def loss_cases() -> Iterator[Case]:
    for tokens, width, classes in ((1024, 256, 8192), (1024, 256, 30522)):
        labels = torch.arange(tokens)
        yield Case(
            name="linear_cross_entropy",
            size=f"{tokens} x {width} -> {classes}",
            ways={
                "decomposition": lambda x, w, t=labels: cross_entropy(
                    nn.functional.linear(x, w), t, smoothing=0.0
                )[0],
                "kernel": lambda x, w, t=labels: linear_cross_entropy(x, t, w, smoothing=0.0)[0],
            },
            inputs=[numbers(tokens, width), numbers(classes, width)],
        )


def heads_cases() -> Iterator[Case]:
    for batch, length, heads, norm, pairs in (
        (4, 512, 4, "rms_norm", "half"),
        (8, 197, 12, "", "half"),
        (8, 197, 12, "", "adjacent"),
        (1, 1, 12, "rms_norm", "half"),
    ):
        angles = torch.randn(1, length, 32)
        cos, sin = angles.cos(), angles.sin()

        def decomposed(
            x: Tensor,
            gain: Tensor,
            h: int = heads,
            n: str = norm,
            p: str = pairs,
            a: Any = (cos, sin),
        ) -> Tensor:
            y = split_heads(x, heads=h)
            return rotary(rms_norm_reference(y, gain, eps=1e-6) if n else y, *a, pairs=p)

        def fused(
            x: Tensor,
            gain: Tensor,
            h: int = heads,
            n: str = norm,
            p: str = pairs,
            a: Any = (cos, sin),
        ) -> Tensor:
            return rotate_heads(x, *a, gain if n else None, heads=h, norm=n, eps=1e-6, pairs=p)

        yield Case(
            name="rotate_heads",
            size=f"{batch} x {length} x {heads} x 64, {norm or 'no norm'}, {pairs}",
            ways={"decomposition": decomposed, "C": fused, "torch": without_c(fused)},
            inputs=[numbers(batch, length, heads * 64), numbers(64)],
        )


def norm_cases() -> Iterator[Case]:
    for rows, width in ((2048, 256), (1576, 768), (948, 3072)):
        yield Case(
            name="rms_norm",
            size=f"{rows} x {width}",
            ways={
                "decomposition": lambda x, w: rms_norm_reference(x, w, eps=1e-6),
                "torch's rms_norm": lambda x, w: nn.functional.rms_norm(x, w.shape, w, 1e-6),
                "kernel": lambda x, w: rms_norm(x, w, eps=1e-6),
            },
            inputs=[numbers(rows, width), numbers(width)],
        )


def timed(compute: Compute, case: Case, training: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        found = compute(*case.inputs)
        if training:
            results = [found] if isinstance(found, Tensor) else list(found)
            seeds = [torch.ones_like(y) for y in results]
            torch.autograd.grad(results, case.inputs, seeds, allow_unused=True)
    return time.perf_counter() - start


def measure(case: Case, rounds: int) -> list[Row]:
    """Every way once a round, in turn; ratios are taken within a round."""
    ratios: dict[str, dict[bool, list[float]]] = {way: {False: [], True: []} for way in case.ways}
    for training in (False, True):
        for number in range(rounds + 1):
            times = {way: timed(run, case, training) for way, run in case.ways.items()}
            first = next(iter(times.values()))
            if number:  # the first round warms up
                for way, seconds in times.items():
                    ratios[way][training].append(seconds / first)
    return [
        Row(
            name=case.name,
            size=case.size,
            way=way,
            forward=round(statistics.median(found[False]), 3),
            training=round(statistics.median(found[True]), 3),
        )
        for way, found in ratios.items()
    ]


CASES = (attention_cases, linear_cases, loss_cases, heads_cases, norm_cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a kernel's name")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    for case in (case for make in CASES for case in make()):
        if options.only in case.name:
            found = measure(case, options.rounds)
            rows += found
            for row in found:
                print(f"{row.name:22}{row.size:46}{row.way:18}{row.forward:8}{row.training:8}")
    if options.json:
        machine = {"processor": platform.processor(), "threads": torch.get_num_threads()}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        content = {**machine, **versions, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
