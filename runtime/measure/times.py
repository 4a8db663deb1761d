"""Measures callables: times side by side, and the peak of live tensor memory.

What a step takes at the least, its matrix products and attention calls alone, is measured by
`gemm_floor` of multiway.runtime.measure.floor, which is also found here.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from multiway.runtime.measure.collector import resting
from multiway.runtime.measure.floor import Floor, gemm_floor

__all__ = ["MIN_PAIRS", "Floor", "Times", "gemm_floor", "interleave", "peak_live_bytes"]

MIN_PAIRS = 9  # with fewer, the quartiles say little


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of the runs of one callable; run i was beside run i of every other one."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The range of the middle half, as a share of the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def ratio(self, other: Times) -> float:
        """The median of this over the median of the other."""
        return self.median / other.median

    def paired_ratio(self, other: Times) -> float:
        """The median of the ratios of runs that were beside each other: what drifts cancels."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    pairs: int = MIN_PAIRS,
    warmup: int = 2,
    after: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Runs callables in turn, A B A B ..., and gives the times of each.

    pairs: rounds, at least 9. warmup: rounds before them, not timed. after: called when a round is
    over, to show how far it is. What a callable returns is let go inside its time, as in use; the
    garbage collector rests throughout.
    """
    assert pairs >= MIN_PAIRS, f"{pairs} pairs are too few"
    found: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    with resting():
        for i in range(warmup + pairs):
            for name, run in contestants.items():
                start = clock()
                run()
                seconds = clock() - start
                if i >= warmup:
                    found[name].append(seconds)
            if after is not None:
                after()
    return {name: Times(seconds=tuple(seconds)) for name, seconds in found.items()}


def peak_live_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once during a call, above those at its start.

    What lives on behind the call counts while it runs: gradients that were not there before, and
    the result. It counts what torch's own CPU allocator gives, not what libraries below it take
    for themselves, and does not see that a tensor which was there at the start goes away.
    """
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    return highest(_changes(profiler.profiler.kineto_results.experimental_event_tree()))


def _changes(roots: Iterable[Any]) -> list[tuple[int, int]]:
    """(address, bytes) of every allocation and, negative, every release, in the order of time."""
    from torch._C._profiler import _EventType

    found, rest = [], list(roots)
    while rest:
        node = rest.pop()
        rest += node.children
        kind, extra = node.typed
        if kind == _EventType.Allocation:
            found.append((node.start_time_ns, extra.ptr, extra.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda each: each[0])]


def highest(changes: Iterable[tuple[int, int]]) -> int:
    """The most bytes alive at once after (address, bytes) changes; a release has negative bytes.

    The release of what these changes did not allocate is left out: the profiler tells some of them
    and not others.
    """
    alive: dict[int, int] = {}
    level = top = 0
    for address, size in changes:
        if size >= 0:
            alive[address] = size
            level += size
            top = max(top, level)
        else:
            level -= alive.pop(address, 0)
    return top
