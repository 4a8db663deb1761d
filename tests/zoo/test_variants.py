"""Families that have a row for every wiring: names, sizes, counts of parameters, the listing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import multiway as mw
from multiway.cards import spec_difference
from multiway.cli import app
from multiway.compiler.assemble.build import parameters
from multiway.zoo import catalogue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from parity_wirings import wiring_of

# Blocks x width, then parameters of the body without embedding (a published table).
BODIES = {
    (12, 256): 9_640_192,
    (12, 512): 38_547_968,
    (12, 768): 84_953_856,
    (24, 1024): 303_612_928,
    (24, 2048): 1_214_351_360,
}
# Parameters of wirings at those sizes. With three norms of a block the body has 2 L D more, in
# post-norm order 2 L D less.
COUNTS: list[tuple[str, dict[str, Any], list[int]]] = [
    ("prenorm", {}, [0, 0, 0, 0, 0]),
    ("postnorm", {}, [6_144, 12_288, 18_432, 49_152, 98_304]),
    ("hc", {"n": 2, "dynamic": False}, [192, 192, 192, 384, 384]),
    ("hc", {"n": 4, "dynamic": False}, [576, 576, 576, 1_152, 1_152]),
    ("hc", {"n": 2}, [37_104, 73_968, 110_832, 295_392, 590_304]),
    ("hc", {"n": 4}, [49_776, 98_928, 148_080, 394_464, 787_680]),
    ("frac", {"m": 2, "dynamic": False}, [240, 240, 240, 480, 480]),
    ("frac", {"m": 2}, [21_792, 43_296, 64_800, 172_608, 344_640]),
    ("frac", {"m": 4}, [17_808, 34_704, 51_600, 136_992, 272_160]),
    ("mhc", {"n": 2}, [99_595, 198_923, 298_251, 791_059, 1_581_587]),
    ("mhc", {"n": 4}, [594_573, 1_188_493, 1_782_413, 4_736_277, 9_471_253]),
    ("denseformer", {}, [90, 90, 90, 324, 324]),
    ("muddformer", {}, [217_473, 414_081, 610_689, 2_355_269, 4_583_493]),
    ("muddformer", {"dynamic": False}, [321, 321, 321, 1_221, 1_221]),
    ("muddformer", {"qkv": False}, [202_458, 399_066, 595_674, 2_262_404, 4_490_628]),
    ("muddformer", {"prepost_norm": True}, [223_873, 426_881, 629_889, 2_405_445, 4_683_845]),
    ("laurel", {"variant": "rw"}, [48, 48, 48, 96, 96]),
    ("laurel", {"variant": "lr"}, [196_608, 393_216, 589_824, 1_572_864, 3_145_728]),
    ("laurel", {}, [196_656, 393_264, 589_872, 1_572_960, 3_145_824]),
    ("attnres", {}, [12_800, 25_600, 38_400, 100_352, 200_704]),
    ("mhar", {}, [12_800, 25_600, 38_400, 100_352, 200_704]),
    ("dar", {}, [12_288, 24_576, 36_864, 98_304, 196_608]),
    ("dar", {"gate": "zero"}, [12_312, 24_600, 36_888, 98_352, 196_656]),
]
VARIANTS = {"mudd": "muddformer", "mudd-prepost": "muddformer"}  # else called as there


def size_of(spec: mw.Spec) -> int:
    """Parameters without the embedding."""
    found = parameters(spec.for_head("lm"))
    return sum(p.size for path, p in found.items() if path != "embed.text.weight")


def total(name: str, options: dict[str, Any], counts: list[int], i: int) -> int:
    """What the table says of a whole model without its embedding."""
    depth, width = list(BODIES)[i]
    split = name == "muddformer" and options.get("qkv", True)
    more = 2 * depth * width * (split - (name == "postnorm"))
    return BODIES[depth, width] + more + counts[i]


@pytest.mark.parametrize("i", range(5), ids=[f"{d}x{w}" for d, w in BODIES])
@pytest.mark.parametrize(("name", "options", "counts"), COUNTS)
def test_parameters_are_as_published(
    name: str, options: dict[str, Any], counts: list[int], i: int
) -> None:
    depth, width = list(BODIES)[i]
    dims = {"depth": depth, "width": width, "num_heads": 4}
    spec = {"multiway": 1, "extends": "prenorm", "name": "case", "dims": dims}
    wiring = wiring_of(name, options)
    assert size_of(mw.load({**spec, "wiring": wiring})) == total(name, options, counts, i)


# What wirings without a published count add, by depth and width: from their formulas.
UNPUBLISHED: dict[str, Callable[[int, int], int]] = {
    "deepnorm": lambda depth, width: 0,
    "sandwich": lambda depth, width: 2 * depth * width,
    "rezero": lambda depth, width: 2 * depth - 2 * depth * width,
    "layer-scale": lambda depth, width: 2 * depth * width,
    "value-residual": lambda depth, width: depth - 1,
    "unet": lambda depth, width: depth // 2,
    "x0": lambda depth, width: 2 * (depth - 1),
}


@pytest.mark.parametrize("name", [e.name for e in catalogue() if e.family == "prenorm"])
def test_entries_have_the_published_sizes(name: str) -> None:
    variant, _, size = name.rpartition("-")
    if size == "test":
        return
    depth, width = map(int, size.split("x"))
    options = {"prepost_norm": True} if variant == "mudd-prepost" else {}
    wanted = {"n": 4} if variant in ("hc", "mhc") else {"m": 2} if variant == "frac" else options
    wiring = VARIANTS.get(variant, variant)
    if variant in UNPUBLISHED:
        assert size_of(mw.load(name)) == BODIES[depth, width] + UNPUBLISHED[variant](depth, width)
        return
    row = next(row for row in COUNTS if row[0] == wiring and row[1] == wanted)
    assert size_of(mw.load(name)) == total(*row, list(BODIES).index((depth, width)))


def test_every_variant_has_every_size_and_its_name() -> None:
    zoo = catalogue()
    entries = [entry for entry in zoo if entry.family == "prenorm"]
    variants = dict.fromkeys(entry.variant for entry in entries)
    sizes = dict.fromkeys(entry.name.removeprefix(f"{entry.variant}-") for entry in entries)
    assert {e.name for e in entries} == {f"{v}-{s}" for v in variants for s in sizes}
    assert len(sizes) == 5
    assert all(mw.load(entry.name).name == entry.name for entry in entries)
    assert all(zoo.family_of(mw.load(entry.name)) == "prenorm" for entry in entries)
    assert {mw.load(f"{v}-test").wiring.use for v in variants} >= {"hc", "mhc", "dar", "mudd"}


def test_two_variants_differ_by_their_wiring() -> None:
    found = spec_difference(mw.load("prenorm-12x512"), mw.load("hc-12x512"))
    assert {path.partition(".")[0] for path in found} == {"name", "wiring"}
    assert len(found) < 12


def listing(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["zoo", *arguments])
    assert result.exit_code == 0, result.output
    return [line.split()[0] for line in result.output.splitlines()[1:]]


def test_the_listing_folds_variants_and_unfolds_what_is_asked_for() -> None:
    names = listing()
    assert "hc-*" in names
    assert not any(name.startswith("hc-1") for name in names)
    assert len(names) == len({(each.family, each.variant or each.name) for each in catalogue()})
    assert listing("hc-*") == [
        f"hc-{s}" for s in ("12x512", "12x768", "24x1024", "24x2048", "test")
    ]
    assert "hc-12x512" in listing("--wiring", "hc")
