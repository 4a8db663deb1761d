"""Time of linears by copies of their weights over that of torch's linears, without gradients.

Weights of LAYERS layers are used in turn, as in a model, so that none is in the nearer caches from
the call before. Both ways run on each layer, the first of them in turn; ratios are of whole rounds,
and their median is printed, or a dash where no copy is kept.

    python benchmarks/kernels_copies.py [--rounds 15] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multiway.runtime.kernels.linear import prepacked
from multiway.runtime.measure.allocator import keep_memory

LAYERS = 12
SIZES = [  # rows, channels, those of each linear
    (1, 768, (3072,)),
    (8, 768, (768,)),
    (160, 768, (3072,)),
    (788, 768, (768,)),
    (788, 768, (768,) * 3),
    (788, 3072, (768,)),
]


def plain(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    return [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def ratio(
    rows: int, width: int, widths: Sequence[int], dtype: torch.dtype, rounds: int
) -> float | None:
    """The time by copies over that of torch's linears, or None where there are no copies."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    x = draw(rows, width)
    layers = [([draw(n, width) for n in widths], [draw(n) for n in widths]) for _ in range(LAYERS)]
    for weights, _ in layers:
        prepacked.tell(weights)
    ratios = []
    for number in range(rounds + 1):
        times = dict.fromkeys((plain, prepacked.linears), 0.0)
        order = [*times] if number % 2 else [*reversed(times)]
        for weights, biases in layers:
            for way in order:
                start = time.perf_counter()
                found = way(x, weights, biases)
                times[way] += time.perf_counter() - start
                if found is None:
                    return None
        if number:  # the first round makes the copies
            ratios.append(times[prepacked.linears] / times[plain])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    torch.manual_seed(0)
    print(f"{'':28}{'bfloat16':>10}{'float32':>10}")
    with torch.no_grad():
        for rows, width, widths in SIZES:
            size = f"{rows} x {width} -> {len(widths)} x {widths[0]}"
            found = [
                ratio(rows, width, widths, dtype, options.rounds)
                for dtype in (torch.bfloat16, torch.float32)
            ]
            print(
                f"{size:28}" + "".join(f"{each:10.2f}" if each else f"{'-':>10}" for each in found)
            )


if __name__ == "__main__":
    main()
