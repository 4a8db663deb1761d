"""Initial values: statistics of each kind, what a seed decides, what families start as."""

from __future__ import annotations

import math

import pytest
import torch

import multiway as mw
from multiway.compiler.assemble.build import parameters
from multiway.compiler.graph.layer_graph import Init
from multiway.runtime.parameters.initialise import initialise

COUNT = 100_000


def values(
    start: Init, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    tensor = torch.full(shape or (COUNT,), math.nan, dtype=dtype)
    initialise(tensor, start, torch.Generator().manual_seed(seed))
    return tensor


def near(value: float, want: float, *, within: float) -> bool:
    return abs(value - want) <= within


def test_normal_values() -> None:
    x = values(Init(kind="normal", std=0.3))
    assert near(float(x.mean()), 0, within=0.3 * 4 / COUNT**0.5)
    assert near(float(x.std()), 0.3, within=0.003)
    assert near(float((x.abs() < 0.3).float().mean()), 0.6827, within=0.01)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_truncated_normal_values_keep_within_their_bounds(ratio: float) -> None:
    std = 0.02
    cut = ratio * std
    x = values(Init(kind="truncated_normal", std=std, cut=cut))
    assert float(x.abs().max()) <= cut
    assert float(x.abs().max()) > 0.98 * cut, "the whole range is used"
    # The variance of a normal distribution between -ratio and ratio standard deviations.
    density = math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    mass = math.erf(ratio / math.sqrt(2))
    want = std * math.sqrt(1 - 2 * ratio * density / mass)
    assert near(float(x.std()), want, within=0.01 * want)
    assert near(float(x.mean()), 0, within=4 * want / COUNT**0.5)


def test_truncated_normal_values_are_those_of_torch_in_distribution() -> None:
    x = values(Init(kind="truncated_normal", std=0.02, cut=0.02)).sort().values
    y = torch.nn.init.trunc_normal_(
        torch.empty(COUNT), 0, 0.02, -0.02, 0.02, generator=torch.Generator().manual_seed(1)
    )
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n/2) in one case of a thousand.
    ranks = torch.searchsorted(y.sort().values, x) / COUNT
    assert float((ranks - torch.arange(COUNT) / COUNT).abs().max()) < 1.95 / math.sqrt(COUNT / 2)


def test_uniform_values() -> None:
    x = values(Init(kind="uniform", bound=0.5))
    assert float(x.abs().max()) <= 0.5
    assert near(float(x.std()), 1 / math.sqrt(12), within=0.003)
    assert near(float(x.mean()), 0, within=0.004)


def test_fixed_values() -> None:
    assert torch.equal(values(Init(kind="constant", value=2.5), 3), torch.full((3,), 2.5))
    assert torch.equal(values(Init(kind="zeros"), 3), torch.zeros(3))
    assert torch.equal(values(Init(kind="ones"), 2, 2), torch.ones(2, 2))
    newest = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert torch.equal(values(Init(kind="newest"), 2, 3), newest)


@pytest.mark.parametrize("kind", ["normal", "truncated_normal", "uniform"])
def test_every_random_kind_follows_its_seed(kind: str) -> None:
    start = Init(kind=kind, std=0.1, cut=0.2, bound=0.3)
    assert torch.equal(values(start, 50, seed=1), values(start, 50, seed=1))
    assert not torch.equal(values(start, 50, seed=1), values(start, 50, seed=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["normal", "truncated_normal", "uniform", "newest", "constant"])
def test_every_kind_fills_every_type(kind: str, dtype: torch.dtype) -> None:
    x = values(Init(kind=kind, std=0.1, cut=0.1, bound=0.3, value=1.0), 9, 9, dtype=dtype)
    assert torch.isfinite(x).all()


def test_an_unknown_kind_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="no initial values of kind nromal"):
        values(Init(kind="nromal"), 3)


def test_meta_tensors_are_left_alone() -> None:
    tensor = torch.empty(3, device="meta")
    initialise(tensor, Init(kind="ones"), torch.Generator())
    assert tensor.is_meta


# Models


def weights(name: str, **more: object) -> dict[str, torch.Tensor]:
    return dict(mw.compile(name, **more).state_dict())  # type: ignore[arg-type]


def test_a_seed_decides_all_weights() -> None:
    first, again, other = (weights("mudd-pythia-test", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differ = {name for name in first if not torch.equal(first[name], other[name])}
    random = {n for n, p in mw.build("mudd-pythia-test").params.items() if p.init.kind == "normal"}
    assert differ == random


def test_initial_values_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(0)
    first = weights("muddformer-test")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = weights("muddformer-test")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_mudd_starts_as_a_plain_transformer() -> None:
    """Static weights choose the newest source, dynamic ones are zero."""
    model = mw.compile(
        "mudd-pythia-test", taps=["streams.1.q", "hidden.2", "streams.3.r", "hidden.4"]
    )
    _, taps = model(tokens=torch.arange(5)[None])
    assert torch.equal(taps["streams.1.q"], taps["hidden.2"])
    assert torch.equal(taps["streams.3.r"], taps["hidden.4"])


def test_beit3_matrices_are_cut_at_one_standard_deviation() -> None:
    found = weights("beit3-test", head="vqa")
    matrices = {
        name: value
        for name, value in found.items()
        if value.dim() == 2 and "norm" not in name and not name.startswith("embed.")
    }
    assert len(matrices) > 20
    for name, value in matrices.items():
        assert float(value.abs().max()) <= 0.02, name
    every = torch.cat([value.flatten() for value in matrices.values()])
    # The real deviation of a normal one cut at one standard deviation: 0.5396 of it.
    assert near(float(every.std()), 0.0108, within=0.0001)


def test_beit3_starts_as_its_original_does() -> None:
    found = weights("beit3-test", head="imageclassification")
    width = 48
    assert near(float(found["embed.text.weight"].std()), width**-0.5, within=0.005)
    assert near(float(found["embed.text.position.weight"].std()), 1, within=0.03)
    assert near(float(found["embed.vision.position.weight"].std()), 1, within=0.08)
    bound = 1 / math.sqrt(3 * 8 * 8)
    for part in ("weight", "bias"):
        assert float(found[f"embed.vision.patch.{part}"].abs().max()) <= bound
    assert near(float(found["embed.vision.patch.weight"].std()), bound / math.sqrt(3), within=0.002)
    for name in ("embed.vision.cls", "embed.vision.mask_token"):
        assert not found[name].any()
    assert float(found["heads.imageclassification.classes.weight"].abs().max()) <= 2.0e-5
    assert all(
        torch.equal(v, torch.ones_like(v))
        for n, v in found.items()
        if n.endswith("norm.vision.weight")
    )
    biases = [v for n, v in found.items() if n.endswith("bias") and "patch" not in n]
    assert not any(v.any() for v in biases)
    scale = weights("beit3-test", head="retrieval")["heads.retrieval.scale"]
    assert near(float(scale), math.log(1 / 0.07), within=1e-6)


def test_the_last_pattern_of_init_holds() -> None:
    spec = {
        "multiway": 1,
        "extends": "mudd-pythia-test",
        "name": "changed",
        "init": {
            "*": {"kind": "constant", "value": 3},
            "blocks.*.weight": "zeros",
            "blocks.1.*": "ones",
        },
    }
    for path, param in parameters(mw.load(spec).for_head()).items():
        if path.startswith("blocks.1."):
            assert param.init.kind == "ones", path
        elif path.startswith("blocks.") and path.endswith(".weight"):
            assert param.init.kind == "zeros", path
        else:
            assert (param.init.kind, param.init.value) == ("constant", 3.0), path
