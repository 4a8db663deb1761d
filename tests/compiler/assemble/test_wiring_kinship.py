"""Which wirings are another one at the start, or with other options; how many numbers they learn.

Formulas and tables are those of the papers and of public code, worked out here a second time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategies import randomise
from wiring_specs import BOTH, TOKENS, decoder, wired

import multiway as mw
from multiway.compiler.assemble.build import parameters
from multiway.compiler.graph.registry import registry
from multiway.runtime.model import Model

Mappings = dict[str, Any]
TINY = 1e-30  # an eps of norms that no number here is near to

# Whether a fresh model is the plain residual one: to the bit, up to the eps of norms, or not.
FRESH = {
    "attnres": "eps",
    "dar": "eps",
    "deepnorm": "no",
    "denseformer": "bits",
    "frac": "bits",
    "hc": "eps",
    "laurel": "bits",
    "layer_scale": "no",
    "mhar": "eps",
    "mhc": "no",  # nearly: its gates differ between tokens
    "mudd": "bits",
    "mudd_prepost": "bits",
    "post_norm": "no",
    "residual": "bits",
    "rezero": "no",
    "sandwich": "no",
    "unet": "no",
    "value_residual": "no",
    "x0": "bits",
}
OPTIONS: dict[str, tuple[Mappings, str]] = {
    "dar with gates": ({"use": "dar", "mix": {"gate": True}}, "bits"),
    "mudd, static": ({"use": "mudd", "mix": {"generator": False}}, "bits"),
    "mudd, one way": ({"use": "mudd", "mix": {"streams": ["r"]}}, "bits"),
    "laurel, weights": ({"use": "laurel", "residual": {"low_rank": None}}, "bits"),
    "laurel, low rank": ({"use": "laurel", "residual": {"balance": False}}, "bits"),
    "hc, static": ({"use": "hc", "lanes": {"weights": {"dynamic": False}}}, "eps"),
    "frac of four": ({"use": "frac", "lanes": {"count": 4}}, "bits"),
    "attnres of groups": ({"use": "attnres", "mix": {"group": 4}}, "eps"),
    "dar of blocks": ({"use": "dar", "mix": {"at": "block"}}, "eps"),
    "value residual that adds": (
        {"edges": [{"streams": ["value"], "sources": [0], "add": True, "static": True}]},
        "bits",
    ),
}
CASES = {**{name: (name, kind) for name, kind in FRESH.items()}, **OPTIONS}


def larger(model: Model) -> Model:
    """A fresh model with matrices five times as large, so that differences are seen."""
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() == 2 and not wired(path):
                parameter.mul_(5)
    return model


def fresh(wiring: str | Mappings, order: str, eps: float) -> torch.Tensor:
    """Logits of a fresh model, whose body is the same for all wirings."""
    spec = decoder(wiring, order, eps=eps)
    model = larger(mw.compile(mw.load(spec), dtype=torch.float64, fuse=False))
    plain = larger(mw.compile(mw.load({**spec, "wiring": "residual"}), dtype=torch.float64))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for path, parameter in plain.named_parameters():
            if path in own:
                own[path].copy_(parameter)
        return model.run("forward", tokens=TOKENS)


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_a_fresh_model_is_the_plain_one_where_papers_say_so(case: str, order: str) -> None:
    wiring, kind = CASES[case]
    exact = kind == "bits"
    got = fresh(wiring, order, 1e-6 if exact else TINY)
    want = fresh("residual", order, 1e-6 if exact else TINY)
    if exact and order == "sequential":
        assert torch.equal(got, want)
    elif exact:  # the two parts of a block may be added in another order
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    elif kind == "eps":
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    else:
        assert float((got - want).abs().max()) > 1e-6


# One wiring as another


def logits(wiring: str | Mappings, order: str, **dims: int) -> tuple[torch.Tensor, set[str]]:
    model = mw.compile(mw.load(decoder(wiring, order, **dims)), dtype=torch.float64, fuse=False)
    randomise(model)
    with torch.no_grad():
        found = model.run("forward", tokens=TOKENS)
    return found, {path for path, _ in model.named_parameters()}


SAME: dict[str, tuple[str | Mappings, str | Mappings]] = {
    "heads of one group": ({"use": "mhar", "mix": {"router": {"groups": 1}}}, "attnres"),
    "static MUDD of the residual": (
        {"use": "mudd", "mix": {"streams": ["r"], "generator": False}},
        "denseformer",
    ),
    "one piece and one copy": (
        {"use": "frac", "lanes": {"count": 1}},
        {"use": "hc", "lanes": {"count": 1}},
    ),
    "groups of one": ({"use": "attnres", "mix": {"group": 1, "partial": False}}, "attnres"),
    "fixed halves": (
        {"edges": [{"streams": ["value"], "sources": [0, "newest"], "fixed": "1 / 2"}]},
        {"edges": [{"streams": ["value"], "sources": ["newest", 0], "fixed": "1 / sources"}]},
    ),
}


@BOTH
@pytest.mark.parametrize("case", SAME)
def test_one_wiring_is_another_with_other_options(case: str, order: str) -> None:
    one, other = SAME[case]
    (got, paths), (want, others) = logits(one, order), logits(other, order)
    assert paths == others
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    plain, _ = logits("residual", order)
    assert float((want - plain).abs().max()) > 1e-3


@BOTH
@pytest.mark.parametrize("name", ["denseformer", "mudd"])
def test_a_period_beyond_the_depth_leaves_the_output_alone(name: str, order: str) -> None:
    _, paths = logits({"use": name, "mix": {"period": 99}}, order)
    assert {path.split(".")[0] for path in paths if ".mix." in path} == {"output"}
    ending = {"streams": ["r"], "static": True, "where": "layer == depth"}
    alone, kept = logits({"mix": ending}, order)
    assert (kept == paths) == (name == "denseformer")
    if name == "denseformer":
        whole, _ = logits({"use": name, "mix": {"period": 99}}, order)
        torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("start", ["softmax", "exp"])
def test_mixing_matrices_of_lanes_are_nearly_doubly_stochastic(start: str, transpose: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(50, 16, generator=generator, dtype=torch.float64)
    scale, bias = torch.ones((), dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    more: Mappings = {"count": 4, "iterations": 20, "eps": 1e-6, "transpose": transpose}
    matrix = registry()["sinkhorn"].reference(z, scale, bias, start=start, **more)
    rows, columns = matrix.sum(-1), matrix.sum(-2)
    if transpose:
        rows, columns = columns, rows
    assert (matrix > 0).all()
    assert float((columns - 1).abs().max()) < 1e-5
    assert 1e-9 < float((rows - 1).abs().max()) < 2e-2


# How many numbers they learn

SIZES = [(12, 256), (12, 512), (12, 768), (24, 1024), (24, 2048)]
QKV = "(ways * sources * 4 // 64 + 1) * 64"
COUNTS: dict[str, tuple[str | Mappings, list[int]]] = {
    "postnorm": ("post_norm", [6_144, 12_288, 18_432, 49_152, 98_304]),
    "hc static n=2": (
        {"use": "hc", "lanes": {"count": 2, "weights": {"dynamic": False}}},
        [192, 192, 192, 384, 384],
    ),
    "hc static n=4": (
        {"use": "hc", "lanes": {"weights": {"dynamic": False}}},
        [576, 576, 576, 1_152, 1_152],
    ),
    "hc dynamic n=2": (
        {"use": "hc", "lanes": {"count": 2}},
        [37_104, 73_968, 110_832, 295_392, 590_304],
    ),
    "hc dynamic n=4": ("hc", [49_776, 98_928, 148_080, 394_464, 787_680]),
    "frac static m=2": (
        {"use": "frac", "lanes": {"weights": {"dynamic": False}}},
        [240, 240, 240, 480, 480],
    ),
    "frac dynamic m=2": ("frac", [21_792, 43_296, 64_800, 172_608, 344_640]),
    "frac dynamic m=4": (
        {"use": "frac", "lanes": {"count": 4}},
        [17_808, 34_704, 51_600, 136_992, 272_160],
    ),
    "mhc n=2": (
        {"use": "mhc", "lanes": {"count": 2}},
        [99_595, 198_923, 298_251, 791_059, 1_581_587],
    ),
    "mhc n=4": ("mhc", [594_573, 1_188_493, 1_782_413, 4_736_277, 9_471_253]),
    "denseformer": ("denseformer", [90, 90, 90, 324, 324]),
    "denseformer, dilated": (
        {"use": "denseformer", "mix": {"dilation": 3}},
        [90, 90, 90, 324, 324],
    ),
    "mudd": ("mudd", [217_473, 414_081, 610_689, 2_355_269, 4_583_493]),
    "mudd static": (
        {"use": "mudd", "mix": {"generator": False}},
        [321, 321, 321, 1_221, 1_221],
    ),
    "mudd of r": (
        {"use": "mudd", "mix": {"streams": ["r"], "generator": {"hidden": QKV}}},
        [202_458, 399_066, 595_674, 2_262_404, 4_490_628],
    ),
    "mudd prepost": (
        {"use": "mudd_prepost", "mix": {"generator": {"norm": {"weight": False}}}},
        [223_873, 426_881, 629_889, 2_405_445, 4_683_845],
    ),
    "laurel rw": ({"use": "laurel", "residual": {"low_rank": None}}, [48, 48, 48, 96, 96]),
    "laurel lr": (
        {"use": "laurel", "residual": {"balance": False}},
        [196_608, 393_216, 589_824, 1_572_864, 3_145_728],
    ),
    "laurel": ("laurel", [196_656, 393_264, 589_872, 1_572_960, 3_145_824]),
    "attnres": ("attnres", [12_800, 25_600, 38_400, 100_352, 200_704]),
    "attnres of groups": (
        {"use": "attnres", "mix": {"group": 4}},
        [12_800, 25_600, 38_400, 100_352, 200_704],
    ),
    "mhar": ("mhar", [12_800, 25_600, 38_400, 100_352, 200_704]),
    "dar": ("dar", [12_288, 24_576, 36_864, 98_304, 196_608]),
    "dar with gates": (
        {"use": "dar", "mix": {"gate": True}},
        [12_312, 24_600, 36_888, 98_352, 196_656],
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_it_learns_as_many_numbers_as_the_reference(case: str) -> None:
    wiring, wanted = COUNTS[case]
    found = [of_wiring(wiring, depth, width) for depth, width in SIZES]
    assert found == wanted


def numbers(wiring: str | Mappings, depth: int, width: int) -> dict[str, int]:
    hidden = -(-int(8 / 3 * width) // 64) * 64
    spec = mw.load(decoder(wiring, depth=depth, width=width, heads=4, hidden=hidden)).for_head()
    return {path: int(torch.Size(each.shape).numel()) for path, each in parameters(spec).items()}


def of_wiring(wiring: str | Mappings, depth: int, width: int) -> int:
    return sum(n for path, n in numbers(wiring, depth, width).items() if wired(path))


def test_the_body_learns_as_many_numbers_as_the_reference() -> None:
    wanted = [9_640_192, 38_547_968, 84_953_856, 303_612_928, 1_214_351_360]
    bodies = [numbers("residual", depth, width) for depth, width in SIZES]
    found = [sum(n for path, n in each.items() if path != "embed.text.weight") for each in bodies]
    assert found == wanted
