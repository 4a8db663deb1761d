"""The cases: what is compared with what, and how. One entry each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "memory", "compile"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`a` over `b`, measured in one run.

    a, b: a file of benchmarks/specs or a zoo name; b also `gemm`, the matrix products and attention
    calls of `a` alone, `hf`, transformers' model of its size, or nothing.
    kind: `step` is the time of a step, `memory` the peak of live tensor bytes in one, `compile` the
    time from a spec to all its programs on meta.
    per: the ratio is divided by this. target: the ratio, or without `b` the seconds, that is aimed
    at, at most; None where none is set.
    native: with the kernels in C where they can be built.
    """

    name: str
    doc: str
    a: str
    b: str = ""
    kind: Kind = "step"
    head: str | None = None
    train: bool = False
    dtype: str = "float32"
    batch: int = 1
    length: int = 512
    per: float = 1.0
    target: float | None = None
    native: bool = True
    pairs: int = 15


def _beit3(dtype: str, short: str) -> Case:
    return Case(
        name=f"beit3-base-{short}",
        doc="BEiT-3 base, features of 4 x (224 image + 40 tokens): time over its products alone",
        a="beit3-base",
        b="gemm",
        head="features",
        dtype=dtype,
        batch=4,
        length=40,
    )


def _mudd(size: str, batch: int, *, train: bool, native: bool = True) -> Case:
    mode, without = "train" if train else "forward", "" if native else "-portable"
    return Case(
        name=f"mudd-{size}-{mode}{without}",
        doc="MUDD over plain residual, equal widths" + ("" if native else ", no kernels in C"),
        a=f"mudd-{size}.yaml",
        b=f"residual-{size}.yaml",
        batch=batch,
        train=train,
        native=native,
    )


def _neox(size: str, batch: int) -> Case:
    return Case(
        name=f"neox-{size}-train",
        doc="Pythia over transformers' GPT-NeoX of equal size, forward and backward",
        a=f"neox-{size}.yaml",
        b="hf",
        batch=batch,
        train=True,
        target=1.0,
    )


CASES = (
    _beit3("float32", "f32"),
    _beit3("bfloat16", "bf16"),
    _mudd("12x768", 2, train=False),
    _mudd("12x768", 2, train=True),
    _mudd("24x256", 4, train=False),
    _mudd("24x256", 4, train=True),
    _mudd("24x256", 4, train=False, native=False),
    _mudd("24x256", 4, train=True, native=False),
    _neox("12x768", 2),
    _neox("24x256", 4),
    Case(
        name="memory-24x256",
        doc="MUDD over plain residual: peak of live tensor bytes in a step of training",
        kind="memory",
        a="mudd-24x256.yaml",
        b="residual-24x256.yaml",
        batch=4,
        train=True,
    ),
    Case(
        name="compile-2.8b",
        doc="seconds from spec to all programs of MUDD-Pythia 2.8B, on meta",
        kind="compile",
        a="mudd-pythia-2.8b",
        pairs=9,
    ),
    Case(
        name="compile-linear",
        doc="time of compiling 128 layers over 32 layers, divided by 4: 1 is linear in depth",
        kind="compile",
        a="layers-128.yaml",
        b="layers-32.yaml",
        per=4.0,
        target=1.1,
        pairs=9,
    ),
)
