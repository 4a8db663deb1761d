"""The cases: what is compared with what, and how. One entry each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["step", "memory", "compile"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`a` over `b`, measured in one run.

    a, b: a file of benchmarks/specs or a zoo name, `NAME+WIRING` for another wiring; b also
    `gemm`, the matrix products and attention calls of `a` alone, `hf`, transformers' model of its
    size, or nothing.
    kind: `step` is the time of a step, `memory` the peak of live tensor bytes in one, `compile` the
    time from a spec to all its programs on meta.
    per: the ratio is divided by this. target: the ratio, or without `b` the seconds, that is aimed
    at, at most; None where none is set.
    native: with the kernels in C where they can be built.
    mode, without: what the models are compiled for, and the passes that are left out.
    budget: `a` keeps at most this many times the bytes that `b` keeps for backward, by the estimate
    of plan_memory; None for no limit.
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
    mode: Literal["train", "inference"] = "train"
    without: tuple[str, ...] = ()
    budget: float | None = None
    pairs: int = 15


def _beit3(dtype: str, short: str, target: float, *, copies: bool = True) -> Case:
    """copies: with weights laid out once. The floor always is torch's products by plain weights."""
    return Case(
        name=f"beit3-base-{short}" + ("" if copies else "-unpacked"),
        doc="BEiT-3 base, 4 x (image, 40 tokens), over its products"
        + ("" if copies else ", weights as they lie"),
        mode="inference",
        without=() if copies else ("pack_weights",),
        a="beit3-base",
        b="gemm",
        head="features",
        dtype=dtype,
        batch=4,
        length=40,
        target=target,
    )


def _mudd(size: str, batch: int, target: float, *, train: bool, native: bool = True) -> Case:
    mode, without = "train" if train else "forward", "" if native else "-portable"
    return Case(
        name=f"mudd-{size}-{mode}{without}",
        doc="MUDD over plain residual, equal widths, "
        + ("a training step" if train else "forward")
        + ("" if native else ", no kernels in C"),
        a=f"mudd-{size}.yaml",
        b=f"residual-{size}.yaml",
        batch=batch,
        train=train,
        native=native,
        target=target,
        # With 15, one run against the next differs by three hundredths, by five on a busy machine.
        pairs=45,
    )


def _mudd_bf16(size: str, batch: int, *, train: bool) -> Case:
    case = _mudd(size, batch, 0.0, train=train)
    return dataclasses.replace(
        case,
        name=f"{case.name}-bf16",
        doc=f"{case.doc}, bfloat16",
        dtype="bfloat16",
        mode="train" if train else "inference",
        target=None,
    )


def _memory(name: str, doc: str, **more: Any) -> Case:
    return Case(
        name=name,
        doc=f"MUDD over plain residual: {doc}",
        a="mudd-24x256.yaml",
        b="residual-24x256.yaml",
        batch=4,
        train=True,
        **more,
    )


def _neox(size: str, batch: int, target: float) -> Case:
    return Case(
        name=f"neox-{size}-train",
        doc="Pythia over transformers' GPT-NeoX of equal size, a training step",
        a=f"neox-{size}.yaml",
        b="hf",
        batch=batch,
        train=True,
        target=target,
    )


# Gradients of the history wait beside what is kept: this leaves room for them.
PLANNED = 0.95


def _wiring(name: str, target: float | None = None) -> Case:
    return Case(
        name=f"wiring-{name}",
        doc=f"24 x 256 with the wiring {name} over plain residual, a training step",
        a=f"prenorm-24x256.yaml+{name}",
        b="prenorm-24x256.yaml",
        batch=4,
        train=True,
        target=target,
        pairs=9,
    )


def _routing(name: str, doc: str, a: str, b: str, target: float, length: int) -> Case:
    return Case(
        name=f"routing-{name}",
        doc=f"24 x 256, {doc}, a training step",
        a=a,
        b=b,
        batch=4,
        length=length,
        train=True,
        target=target,
        pairs=9,
    )


CASES = (
    _beit3("float32", "f32", 1.06),
    _beit3("bfloat16", "bf16", 1.20),
    _beit3("float32", "f32", 1.06, copies=False),
    _beit3("bfloat16", "bf16", 1.20, copies=False),
    _mudd("12x768", 2, 1.05, train=False),
    _mudd("12x768", 2, 1.06, train=True),
    _mudd("24x256", 4, 1.15, train=False),
    _mudd_bf16("24x256", 4, train=False),
    _mudd("24x256", 4, 1.17, train=True),
    _mudd_bf16("24x256", 4, train=True),
    _mudd_bf16("12x768", 2, train=True),
    _mudd("24x256", 4, 1.25, train=False, native=False),
    _mudd("24x256", 4, 1.32, train=True, native=False),
    _neox("12x768", 2, 1.0),
    _neox("24x256", 4, 0.93),
    _wiring("denseformer", 1.08),
    _wiring("laurel", 1.12),
    _wiring("value_residual", 1.08),
    _wiring("mudd", 1.15),
    _wiring("attnres", 1.20),
    _wiring("hc", 1.20),
    _wiring("frac", 1.20),
    _wiring("mhc", 1.30),
    _wiring("mhar", 1.30),
    *map(_wiring, ("mudd_prepost", "dar", "post_norm", "deepnorm", "sandwich", "rezero")),
    *map(_wiring, ("layer_scale", "unet", "x0")),
    _routing(
        "top-k",
        "2 of 8 experts of half width over the dense model",
        "experts-24x256.yaml",
        "prenorm-24x256.yaml",
        target=1.20,
        length=512,
    ),
    _routing(
        "modality",
        "parts with copies for two modalities over one copy",
        "modality-24x256.yaml",
        "unrouted-24x256.yaml",
        target=1.08,
        length=256,
    ),
    _memory("memory-24x256", "peak of live tensor bytes in a step of training", kind="memory"),
    _memory(
        "memory-24x256-recompute",
        "the same, with the cheapest values made again",
        kind="memory",
        budget=1.05,
        target=1.10,
    ),
    _memory(
        "memory-24x256-planned",
        "the same, within the bytes that plain residual keeps",
        kind="memory",
        budget=PLANNED,
        target=1.02,
    ),
    _memory("mudd-24x256-train-planned", "time of such a step", budget=PLANNED),
    Case(
        name="compile-2.8b",
        doc="seconds from spec to all programs of MUDD-Pythia 2.8B, on meta",
        kind="compile",
        a="mudd-pythia-2.8b",
        target=3.0,
        pairs=9,
    ),
    Case(
        name="compile-linear",
        doc="compiling 128 layers over 32 layers, divided by 4: 1 is linear in depth",
        kind="compile",
        a="layers-128.yaml",
        b="layers-32.yaml",
        per=4.0,
        target=1.5,
        pairs=9,
    ),
)
