"""multiway bench: what a step takes beside other models, measured in one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multiway import api
from multiway.commands.common import (
    HeadOption,
    JsonOption,
    Mode,
    ModeOption,
    SetOption,
    SpecArgument,
    note,
    print_json,
    read_spec,
    short_bytes,
    short_number,
    write_text,
)
from multiway.commands.zoo import columns
from multiway.specs import MultiwayError, Spec
from multiway.specs.errors import nearest, quote

if TYPE_CHECKING:
    from multiway.runtime.measure.sides import Side, Work

FORMAT = 1  # of the result document
NAMED = ("no-fuse", "hf", "gemm")  # what --against may name beside specs


AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SPEC|no-fuse|hf|gemm",
        help="What to compare with: another spec, the reference form of this one, "
        "transformers' GPT-NeoX of its size, its matrix products alone. May be repeated.",
    ),
]
TrainOption = Annotated[
    bool, typer.Option("--train", help="Forward and backward of the loss, no optimizer.")
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16"], typer.Option(help="Of weights and activations.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Rows of the batch.")]
LengthOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a text; default: 512, or the longest.")
]
PairsOption = Annotated[int, typer.Option(min=9, help="How often every side runs, in turn.")]
MemoryOption = Annotated[
    bool, typer.Option("--memory", help="The peak of live tensor bytes in a step, too.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; default: torch's own.")
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="FILE", help="A file for the JSON.")
]


def command(
    source: SpecArgument,
    against: AgainstOption = None,
    head: HeadOption = None,
    train: TrainOption = False,
    mode: ModeOption = Mode.train,
    dtype: DtypeOption = "float32",
    batch: BatchOption = 1,
    length: LengthOption = None,
    pairs: PairsOption = 15,
    memory: MemoryOption = False,
    threads: ThreadsOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a step beside a baseline in the same run: ratio, spread, memory. See docs/benchmarks.md.

    --set holds for SPEC and for every spec it is compared with.
    """
    spec = read_spec(source, settings).for_head(head)
    names = _check_against(against or [])
    if train and mode is Mode.inference:
        raise MultiwayError.one(
            "usage",
            "an inference program takes no gradients",
            place="--train",
            expected="--mode train, or no --train",
        )
    if out is not None and not out.parent.is_dir():
        message = f"there is no folder {out.parent}"
        raise MultiwayError.one("unwritable", message, place=str(out))
    others = {name: _other(name, settings, spec) for name in names if name not in NAMED}
    asked = {
        "compiled_for": mode.value,
        "dtype": dtype,
        "batch": batch,
        "length": length,
        "pairs": pairs,
    }
    result = measured(spec, others, names, asked, train=train, memory=memory, threads=threads)
    if out is not None:
        write_text(out, json.dumps(result, indent=2) + "\n")
        note(f"wrote {out}")
    print_json(result) if as_json else typer.echo(table(result))


def measured(
    spec: Spec,
    others: dict[str, Spec],
    names: list[str],
    asked: dict[str, Any],
    *,
    train: bool,
    memory: bool,
    threads: int | None,
) -> dict[str, Any]:
    """The result of running all sides in turn. Raises MultiwayError.

    asked: compiled_for, dtype, batch, length and pairs, as the result tells them.
    """
    import torch

    from multiway.runtime.measure.allocator import keep_memory
    from multiway.runtime.measure.sides import Work, measure_sides

    allocator = keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    work = Work(batch=asked["batch"], length=asked["length"], train=train)
    compiled = {"mode": asked["compiled_for"], "dtype": getattr(torch, asked["dtype"])}
    sides = make_sides(spec, others, names, work, compiled)
    pairs = asked["pairs"]
    found = measure_sides(sides, pairs=pairs, memory=memory, after=_ticks(pairs + 2))
    run = {"head": spec.head_name, "mode": "train" if train else "forward", **asked}
    return document(found, run=run, allocator=allocator.record())


def _check_against(against: list[str]) -> list[str]:
    for name in NAMED:
        if against.count(name) > 1:
            raise MultiwayError.one("usage", f"{name!r} is named twice", place="--against")
    return against


def _other(name: str, settings: list[str] | None, spec: Spec) -> Spec:
    """Another spec to compare with, with the head of the same name."""
    try:
        found = read_spec(name, settings)
    except MultiwayError as error:
        # The name may as well be meant for one of the words.
        near = nearest(name, NAMED)
        if near and error.problems[0].code == "unknown-spec":
            raise MultiwayError.one(
                "unknown-spec",
                f"{quote(name)} is no spec",
                place="--against",
                expected=f"a zoo name, a path, or one of {', '.join(NAMED)}",
                nearest=near,
            ) from None
        raise
    return found.for_head(spec.head_name if len(found.heads) > 1 else None)


def make_sides(
    spec: Spec, others: dict[str, Spec], names: list[str], work: Work, options: dict[str, Any]
) -> list[Side]:
    """The spec, then what it is compared with, in the order of the names, and last its floor.

    options: of every model that is compiled. Raises MultiwayError.
    """
    from multiway.runtime.measure.neox import neox_settings, neox_side
    from multiway.runtime.measure.sides import floor_side, model_side

    def compiled(name: str, spec: Spec, fuse: bool) -> Side:
        return model_side(
            name, lambda device: api.compile(spec, device=device, fuse=fuse, **options), work
        )

    if "hf" in names:
        neox_settings(spec)  # raises before anything large is made
    sides = [compiled(spec.name, spec, True)]
    for name in names:
        free = _free_name(name, sides)
        if name == "no-fuse":
            sides.append(compiled(free, spec, False))
        elif name == "hf":
            sides.append(neox_side(spec, work, dtype=options["dtype"], name=free))
        elif name != "gemm":
            other = others[name]
            sides.append(compiled(_free_name(other.name, sides), other, True))
    return [*sides, floor_side(sides[0])]


def _free_name(name: str, sides: list[Side]) -> str:
    """A name that no side has yet: a spec may be compared with itself, to see the noise."""
    taken = {side.name for side in sides}
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _ticks(rounds: int) -> Callable[[], None]:
    """What tells now and then how many rounds are over."""
    every, done = max(1, rounds // 4), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done % every == 0:
            note(f"round {done} of {rounds}")

    return tick


def document(found: list[Any], *, run: dict[str, Any], allocator: dict[str, Any]) -> dict[str, Any]:
    """A result as one JSON document. The first side is what the others are compared with."""
    from multiway.runtime.measure.machine import commit, machine, versions
    from multiway.runtime.measure.sides import record

    first, floor = found[0], found[-1]
    packages = ("transformers",) if any(each.side.name == "hf" for each in found) else ()
    return {
        "multiway_bench": FORMAT,
        **run,
        "floor_ratio": first.times.ratio(floor.times),
        "gemm_flops": floor.side.floor.flops,
        "sides": [record(each, baseline=None if each is first else first) for each in found],
        "machine": machine(),
        "versions": versions(packages),
        "allocator": allocator,
        "commit": commit(),
    }


def table(result: dict[str, Any]) -> str:
    """A result for reading."""
    first = result["sides"][0]["name"]
    what = f"{result['mode']}, {result['dtype']}"
    if result["compiled_for"] == Mode.inference:
        what += ", for inference"
    rows: list[tuple[str, ...]] = [
        (what, "time", "ratio", "in pairs", "spread", "tokens/s", "peak", "compile")
    ]
    for side in result["sides"]:
        peak, seconds = side["peak_live_bytes"], side["compile_s"]
        rows.append(
            (
                side["name"],
                _time(side["median_s"]),
                "-" if side["ratio"] is None else f"{side['ratio']:.3f}",
                "-" if side["paired_ratio"] is None else f"{side['paired_ratio']:.3f}",
                f"{side['spread']:.1%}",
                short_number(side["tokens_per_s"]),
                "-" if peak is None else short_bytes(peak),
                "-" if seconds is None else _time(seconds),
            )
        )
    legend = f"ratio: the time of {first} over that of the line; {_sizes(result)}"
    return f"{columns(rows)}\n\n{legend}"


def _sizes(result: dict[str, Any]) -> str:
    tokens, threads = result["sides"][0]["tokens"], result["machine"]["threads"]
    return f"{tokens} tokens a step, {result['pairs']} pairs, threads: {threads}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
