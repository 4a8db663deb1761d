"""The sides of a comparison: models with inputs, as callables that do one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from multiway.runtime.inputs import Expected
from multiway.runtime.measure.times import (
    MIN_PAIRS,
    Floor,
    Times,
    gemm_floor,
    interleave,
    peak_live_bytes,
)
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError
from multiway.specs.language.inputs import Form

LENGTH = 512  # tokens of a text where nothing is said, if it may be that long


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every side of a comparison does in one step.

    train: forward and backward of the loss, no optimizer; else the forward without gradients.
    length: tokens of every text; default: 512, or the longest where that is less.
    """

    batch: int = 1
    length: int | None = None
    train: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Side:
    """One contestant. `compile_s` is the time from a loaded spec to a program on meta."""

    name: str
    run: Callable[[], object]
    tokens: int  # of one step
    program: str = ""
    spec: str = ""  # canonical text
    compile_s: float | None = None
    parameters: int | None = None
    floor: Floor | None = None  # where this side is the calls of another one alone


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came out for a side."""

    side: Side
    times: Times
    peak_live_bytes: int | None = None


def model_side(name: str, make: Callable[[str], Model], work: Work) -> Side:
    """A side that runs a compiled model. make: device to the model. Raises MultiwayError.

    The model is made on meta first, which takes the time of the compiler and none of filling
    weights.
    """
    start = time.perf_counter()
    model = make("meta")
    program = program_for(model, work)
    _ = model.programs[program]
    seconds = time.perf_counter() - start
    inputs = sample_inputs(model, program, work)
    model = make("cpu")
    module = model.programs[program]

    def forward() -> Any:
        return module(*inputs.values())

    def loss() -> torch.Tensor:
        found: torch.Tensor = forward()[0]  # behind it are its metrics
        return found

    return Side(
        name=name,
        run=step(model, forward, loss if work.train else None),
        tokens=tokens_in(model, program, inputs),
        program=program,
        spec=model.spec.text(),
        compile_s=seconds,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def step(
    model: nn.Module, forward: Callable[[], object], loss: Callable[[], torch.Tensor] | None
) -> Callable[[], object]:
    """One step of a model: its forward without gradients, or its loss with all of them."""

    def infer() -> object:
        with torch.no_grad():
            return forward()

    def train() -> object:
        assert loss is not None
        model.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        return None

    return infer if loss is None else train


def floor_side(side: Side) -> Side:
    """The matrix products and attention calls of another side alone."""
    floor = gemm_floor(side.run)
    return Side(name=f"gemm of {side.name}", run=floor, tokens=side.tokens, floor=floor)


def measure_sides(
    sides: Sequence[Side],
    *,
    pairs: int = MIN_PAIRS,
    warmup: int = 2,
    memory: bool = False,
    after: Callable[[], object] | None = None,
) -> list[Measured]:
    """Times of all sides in turn; with `memory`, the peak of live bytes in one more step each."""
    runs = {side.name: side.run for side in sides}
    assert len(runs) == len(sides), "two sides have one name"
    times = interleave(runs, pairs=pairs, warmup=warmup, after=after)
    return [
        Measured(
            side=side,
            times=times[side.name],
            peak_live_bytes=peak_live_bytes(side.run) if memory and side.floor is None else None,
        )
        for side in sides
    ]


def record(found: Measured, baseline: Measured | None = None) -> dict[str, Any]:
    """A result as plain data. Ratios are those of `baseline`'s time to this one's."""
    side, times = found.side, found.times
    return {
        "name": side.name,
        "program": side.program,
        "median_s": times.median,
        "spread": times.spread,
        "seconds": list(times.seconds),
        "ratio": None if baseline is None else baseline.times.ratio(times),
        "paired_ratio": None if baseline is None else baseline.times.paired_ratio(times),
        "tokens": side.tokens,
        "tokens_per_s": side.tokens / times.median,
        "peak_live_bytes": found.peak_live_bytes,
        "compile_s": side.compile_s,
        "parameters": side.parameters,
        "gemm_flops": None if side.floor is None else side.floor.flops,
        "gemm_calls": None if side.floor is None else side.floor.counts(),
        "spec": side.spec,
    }


def program_for(model: Model, work: Work) -> str:
    """The program that a step runs: the head's main one, or its loss. Raises MultiwayError."""
    names = list(model.programs)
    if not work.train:
        return names[0]
    if "loss" not in names:
        raise MultiwayError.one(
            "unknown-program",
            f"head {model.spec.head_name!r} has no loss to train",
            place="--train",
            expected="a head with a program 'loss', or no --train",
        )
    return "loss"


def sample_inputs(model: Model, program: str, work: Work) -> dict[str, torch.Tensor]:
    """Random inputs of the sizes of `work`, by name, in the program's order. On the CPU.

    Nothing is padded or masked. Raises MultiwayError where a text would be too long.
    """
    generator = torch.Generator().manual_seed(work.seed)
    expected = model.expected(program)
    sizes = _lengths(expected, work) | {"B": work.batch}
    dtype = next(model.parameters()).dtype
    found = {}
    for each in expected:
        shape = [sizes[s] if isinstance(s, str) else s for s in each.shape]
        if each.dtype == "int":
            value = torch.randint(0, each.below or 2, shape, generator=generator)
        elif each.dtype == "bool":
            value = torch.zeros(shape, dtype=torch.bool)
        else:
            # Between 0 and 1, because labels of a binary cross-entropy are floats too.
            value = torch.rand(shape, generator=generator).to(dtype)
        found[each.name] = value
    return found


def _lengths(expected: Sequence[Expected], work: Work) -> dict[str, int]:
    """A number for every named size but the batch."""
    found: dict[str, int] = {}
    for each in expected:
        assert not each.many, f"{each.name} is a cache"
        names = [size for size in each.shape if isinstance(size, str) and size != "B"]
        longest = each.longest
        for name in names:
            if work.length is not None and longest is not None and work.length > longest:
                raise MultiwayError.one(
                    "too-long",
                    f"{each.name!r} has positions for {longest} tokens, not for {work.length}",
                    place="--length",
                    expected=f"at most {longest}",
                )
            default = min(LENGTH, longest or LENGTH)
            found[name] = work.length or min(default, found.get(name, default))
    return found


def tokens_in(model: Model, program: str, inputs: Mapping[str, torch.Tensor]) -> int:
    """Tokens that a step reads: those of texts, and what images and vectors become."""
    spec, total = model.spec, 0
    for each in model.expected(program):
        name = each.name if each.name in spec.inputs else each.name.rpartition("_")[0]
        if name not in spec.inputs or each.dtype == "bool":
            continue
        rows, length = inputs[each.name].shape[:2]
        is_image = spec.inputs[name].form() == Form.IMAGE
        total += rows * ((spec.tokens_of(name) or 0) if is_image else length)
    return total
