"""Sites of lanes, in C and in torch's operators, against the op that defines them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rounding import assert_no_farther, margin
from torch.utils.checkpoint import checkpoint

from multiway.compiler.graph.registry import registry
from multiway.runtime.kernels import kernels, native
from multiway.runtime.kernels.lanes import fused_lanes
from multiway.runtime.kernels.lanes.plan import Inputs, Plan, regrouped

REFERENCE = registry()["fused_lanes"].reference
needs_c = pytest.mark.skipif(
    native.library("lanes") is None, reason=f"no C kernel: {native.refused('lanes')}"
)
PATHS = [pytest.param(True, marks=needs_c, id="c"), pytest.param(False, id="plain")]
BALANCE = {"start": "softmax", "iterations": 6, "eps": 1e-6, "transpose": False}
NOTHING: dict[str, Any] = {
    **{"ends": "", "weights": "", "eps": 1e-5, "factors": [1.0, 2.0], "floors": [1e-3, 0.0]},
    **{"balance": {}, "norm": "", "norm_eps": 1e-5, "kept": 0, "goes_on": 0, "reads": 0},
    **{"normed": 0, "raw": 0},
}
SITE = {"ends": "lanes", "kept": 1, "goes_on": 1, "reads": 1, "norm": "rms_norm", "normed": 1}
# The attributes of a call; read, mix and write are of tokens unless `shared` is among them.
CASES: dict[str, dict[str, Any]] = {
    "hc": {**SITE, "weights": "tanh"},
    "hc-first": {**SITE, "weights": "tanh", "ends": "", "kept": 0, "norm": "layer_norm"},
    "hc-shared": {**SITE, "weights": "tanh", "shared": True, "raw": 1, "normed": 2},
    "hc-shifts": {**SITE, "weights": "tanh", "bare": True, "norm": "layer_norm"},
    "frac": {**SITE, "weights": "tanh", "ends": "pieces", "reads": 0, "norm": "layer_norm"},
    "mhc": {**SITE, "weights": "gates", "balance": BALANCE},
    "mhc-first": {**SITE, "weights": "gates", "ends": "", "kept": 0, "balance": BALANCE},
    "mhc-exp": {
        **SITE,
        **{"weights": "gates", "balance": {**BALANCE, "start": "exp", "transpose": True}},
        **{"norm": "layer_norm", "raw": 1, "normed": 3},
    },
    "mhc-out": {**SITE, "weights": "gates", "kept": 0, "goes_on": 0},
    "given": {**SITE, "weights": "given", "goes_on": 0, "shared": True},
    "given-tokens": {**SITE, "weights": "given", "goes_on": 0, "reads": 2, "normed": 0, "raw": 1},
    "sum": {**SITE, "weights": "sum", "goes_on": 0, "kept": 0},
    "end": {**SITE, "goes_on": 0, "reads": 0, "normed": 0, "norm": ""},
    "end-pieces": {**SITE, "ends": "pieces", "goes_on": 0, "reads": 0, "normed": 0, "norm": ""},
}
SIZES = [(2, 3, 4, 8), (1, 40, 2, 5), (3, 6, 3, 19), (2, 9, 1, 16), (1, 17, 5, 33), (2, 0, 4, 8)]


def values(name: str, sizes: tuple[int, ...], *, dtype: torch.dtype, seed: int = 0) -> Any:
    """Arguments and attributes of a case; b, t, lanes, width."""
    attrs = {**NOTHING, **CASES[name]}
    shared, bare = attrs.pop("shared", False), attrs.pop("bare", False)
    b, t, n, d = sizes
    if name == "frac":
        attrs["reads"] = n
    lead, r = (() if shared else (b, t)), attrs["reads"]
    if attrs["balance"]:
        attrs["balance"] = {"count": n, **attrs["balance"]}
    generator = torch.Generator().manual_seed(seed)

    def x(*shape: int, scale: float = 0.5) -> torch.Tensor:
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (scale * made).to(dtype)

    given: dict[str, Any] = {"lanes": x(b, t, n, d, scale=1.0)}
    if attrs["ends"]:
        wide = n * d if attrs["ends"] == "pieces" else d
        given |= {"y": x(b, t, wide), "mix": x(*lead, n, n), "write": x(*lead, n, 1)}
    if attrs["weights"] == "given":
        given["read"] = x(*lead, n, r)
    count = 3 if attrs["goes_on"] else 1
    if attrs["weights"] == "tanh":
        columns = [r, n, 1][:count]
        given |= {"gain": x(d) + 1, "bias": x(d)}
        given |= {"matrices": [x(c, d) for c in columns], "statics": [x(n, c) for c in columns]}
    elif attrs["weights"] == "gates":
        columns = [n, n * n, n][:count]
        given |= {"matrices": [x(c, n * d, scale=n**-0.5) for c in columns]}
        given["biases"] = [x(c) for c in columns]
    if attrs["weights"] in ("tanh", "gates"):
        given["scales"] = [x() + 1 for _ in columns]
    if bare:  # as norms are folded for inference
        del given["gain"], given["bias"]
        given["shifts"] = [x(c) for c in columns]
    if attrs["normed"]:
        given["gains"] = [x(r * d) + 1 for _ in range(attrs["normed"])]
        if attrs["norm"] == "layer_norm":
            given["offsets"] = [x(r * d) for _ in range(attrs["normed"])]
    return given, attrs


def flat(given: dict[str, Any]) -> list[torch.Tensor]:
    return [x for v in given.values() for x in (v if isinstance(v, list) else [v])]


def run(function: Any, given: dict[str, Any], attrs: Any, *, seed: int = 3) -> Any:
    """Outputs, and the gradients of all arguments."""
    for leaf in flat(given):
        leaf.requires_grad_()
    found = function(**given, **attrs)
    return found, torch.autograd.grad(found, flat(given), cotangents(found, seed))


def cotangents(found: Any, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in found)
    return [g.to(y.dtype) for g, y in zip(made, found, strict=True)]


def copied(given: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return {
        name: [x.detach().to(dtype).clone() for x in v]
        if isinstance(v, list)
        else v.detach().to(dtype).clone()
        for name, v in given.items()
    }


@pytest.fixture
def path(request: Any) -> Iterator[bool]:
    native.enable(request.param)
    yield request.param
    native.enable(True)


def close(got: Any, want: Any, *, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        scale = float(b.detach().abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(
            a.double(), b, rtol=rtol, atol=atol * (1 + scale), msg=lambda m, i=i: f"{i}: {m}"
        )


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_site_is_its_op(name: str, sizes: tuple[int, ...], path: bool) -> None:
    given, attrs = values(name, sizes, dtype=torch.float64)
    want, slopes = run(REFERENCE, copied(given), attrs)
    got, found = run(fused_lanes, given, attrs)
    close(got, want)
    close(found, slopes, rtol=1e-8)
    if path:
        assert got[0].numel() == 0 or "Lanes" in type(got[0].grad_fn).__name__


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_float32_is_no_farther_from_float64_than_eager(name: str, path: bool) -> None:
    errors = []  # by draw and tensor: of ours, of eager's, and the largest number
    for seed in range(4):  # some gradients are one number, whose error in one draw may be none
        given, attrs = values(name, (2, 35, 4, 48), dtype=torch.float32, seed=seed)
        exact = flat_pair(run(REFERENCE, copied(given), attrs))
        eager = flat_pair(run(REFERENCE, copied(given, torch.float32), attrs))
        ours = flat_pair(run(fused_lanes, given, attrs))
        assert all(x.dtype == torch.float32 for x in ours)
        of = [
            [
                (x.detach().double() - c.detach()).abs().max()
                for x, c in zip(each, exact, strict=True)
            ]
            for each in (ours, eager)
        ]
        errors.append(torch.tensor([*of, [c.detach().abs().max() for c in exact]]))
    ours_off, eager_off = torch.stack(errors)[:, :2].square().mean(0).sqrt()
    size = torch.stack(errors)[:, 2].amax(0)
    rounded = margin(torch.float32, terms=4 * 48, size=1.0)  # of all lanes of a token
    assert (ours_off <= 3 * eager_off + rounded * (1 + size)).all()


def flat_pair(pair: Any) -> list[torch.Tensor]:
    return [*pair[0], *pair[1]]


@needs_c
def test_large_products_do_not_overflow() -> None:
    for name in ("hc", "mhc", "mhc-exp"):
        given, attrs = values(name, (1, 20, 4, 16), dtype=torch.float32)
        given["scales"] = [scale * 1e4 for scale in given["scales"]]
        want = REFERENCE(**copied(given), **attrs)
        for a, b in zip(fused_lanes(**given, **attrs), want, strict=True):
            assert torch.isfinite(a).all()
            torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2)


@needs_c
@pytest.mark.parametrize("name", ["hc", "mhc", "given"])
def test_what_is_not_finite_passes_through(name: str) -> None:
    given, attrs = values(name, (1, 20, 4, 16), dtype=torch.float32)
    given["lanes"][0, 3, 1, 2] = float("nan")
    found = fused_lanes(**given, **attrs)
    assert all(y[0, 3].isnan().any() for y in found)
    assert all(torch.isfinite(y[0, [0, 1, 2, *range(4, 20)]]).all() for y in found)


@needs_c
@pytest.mark.parametrize("name", ["hc-first", "mhc-first", "given"])
def test_lanes_that_are_all_one_are_not_copied(name: str) -> None:
    given, attrs = values(name, (2, 9, 4, 16), dtype=torch.float64)
    x = given["lanes"][:, :, :1]
    lanes, plain = x.expand(2, 9, 4, 16), x.expand(2, 9, 4, 16).contiguous()
    got = run(fused_lanes, {**given, "lanes": lanes.detach()}, attrs)
    close(flat_pair(got), flat_pair(run(fused_lanes, {**given, "lanes": plain}, attrs)))


@needs_c
@pytest.mark.parametrize("name", ["hc", "frac", "mhc", "given-tokens"])
def test_arguments_may_have_any_strides(name: str) -> None:
    given, attrs = values(name, (2, 9, 4, 16), dtype=torch.float64)
    want = flat_pair(run(fused_lanes, copied(given), attrs))

    def odd(x: torch.Tensor) -> torch.Tensor:
        if x.ndim < 2:
            return x
        return x.transpose(0, -1).contiguous().transpose(0, -1).detach()

    strided = {n: [odd(x) for x in v] if isinstance(v, list) else odd(v) for n, v in given.items()}
    close(flat_pair(run(fused_lanes, strided, attrs)), want)


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("name", ["hc", "mhc", "given"])
def test_any_subset_of_gradients(name: str, path: bool) -> None:
    given, attrs = values(name, (2, 9, 4, 16), dtype=torch.float64)
    _, whole = run(fused_lanes, copied(given), attrs)
    for wanted in range(len(flat(given))):
        fresh = copied(given)
        leaf = flat(fresh)[wanted].requires_grad_()
        found = fused_lanes(**fresh, **attrs)
        needed = [(y, g) for y, g in zip(found, cotangents(found), strict=True) if y.requires_grad]
        ys, gs = [y for y, _ in needed], [g for _, g in needed]
        (made,) = torch.autograd.grad(ys, leaf, gs)
        close([made], [whole[wanted]], rtol=1e-8)


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("name", ["hc", "mhc", "mhc-exp", "hc-shared", "sum"])
def test_any_subset_of_outputs(name: str, path: bool) -> None:
    given, attrs = values(name, (2, 9, 3, 16), dtype=torch.float64)
    outputs = len(fused_lanes(**copied(given), **attrs))
    for i in range(outputs):
        results = []
        for function in (REFERENCE, fused_lanes):
            fresh = copied(given)
            leaves = [leaf.requires_grad_() for leaf in flat(fresh)]
            y = function(**fresh, **attrs)[i]
            made = torch.autograd.grad(y, leaves, cotangents([y]), allow_unused=True)
            results.append(
                [torch.zeros_like(x) if g is None else g for g, x in zip(made, leaves, strict=True)]
            )
        close(results[1], results[0], rtol=1e-8)


@needs_c
def test_nothing_is_tracked_without_gradients() -> None:
    given, attrs = values("mhc", (2, 9, 4, 16), dtype=torch.float32)
    want = [y.detach() for y in run(fused_lanes, given, attrs)[0]]
    with torch.no_grad():
        bare = fused_lanes(**given, **attrs)
    with torch.inference_mode():
        inferred = fused_lanes(**given, **attrs)
    for a, b, c in zip(want, bare, inferred, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and not b.requires_grad


@needs_c
def test_a_checkpoint_gives_the_same_gradients() -> None:
    given, attrs = values("hc", (2, 9, 4, 16), dtype=torch.float64)
    want = run(fused_lanes, copied(given), attrs)
    names = list(given)
    lists = {name: len(v) for name, v in given.items() if isinstance(v, list)}

    def again(*tensors: torch.Tensor) -> Any:
        left = list(tensors)
        made = {
            n: [left.pop(0) for _ in range(lists[n])] if n in lists else left.pop(0) for n in names
        }
        return fused_lanes(**made, **attrs)

    leaves = [leaf.requires_grad_() for leaf in flat(given)]
    for reentrant in (False, True):
        found = checkpoint(again, *leaves, use_reentrant=reentrant)
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(found, cotangents(found))
        found_slopes = [leaf.grad for leaf in leaves]
        close([*found, *found_slopes], flat_pair(want))


@needs_c
def test_a_second_backward_says_so() -> None:
    given, attrs = values("hc", (1, 3, 2, 8), dtype=torch.float64)
    leaf = given["lanes"].requires_grad_()
    found = fused_lanes(**given, **attrs)
    (slope,) = torch.autograd.grad(found[0].square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_autocast_is_left_to_the_reference() -> None:
    takes = kernels()["fused_lanes"].takes
    assert takes is not None
    given, attrs = values("hc", (1, 3, 2, 8), dtype=torch.float32)
    assert takes(**given, **attrs) is None
    with torch.autocast("cpu"):
        assert takes(**given, **attrs) == "autocast: products are to run in its type"
    mixed = {**given, "y": given["y"].double()}
    assert takes(**mixed, **attrs) == "tensors of unlike types"
    mixed = {**given, "matrices": [x.double() for x in given["matrices"]]}
    assert takes(**mixed, **attrs) == "tensors of unlike types"


@pytest.mark.parametrize("name", ["weights", "norm"])
def test_it_fits_what_it_knows(name: str) -> None:
    fits = kernels()["fused_lanes"].fits
    _, attrs = values("hc", (1, 3, 2, 8), dtype=torch.float32)
    assert fits(attrs, {}) is None
    found = fits({**attrs, name: "other"}, {})
    assert found is not None and found.endswith(": no kernel for these") and "other" in found


@pytest.mark.parametrize("name", ["hc", "mhc"])
def test_half_precision_runs_in_torchs_operators(name: str) -> None:
    given, attrs = values(name, (2, 9, 4, 16), dtype=torch.bfloat16)
    exact = REFERENCE(**copied(given), **attrs)
    eager = REFERENCE(**given, **attrs)
    ours = fused_lanes(**given, **attrs)
    for a, b, c in zip(ours, eager, exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert_no_farther(a, b, c, terms=4 * 16)


@pytest.mark.parametrize("name", ["hc", "mhc"])
def test_tracing_sees_torchs_operators(name: str) -> None:
    given, attrs = values(name, (2, 5, 4, 8), dtype=torch.float64)
    want = REFERENCE(**given, **attrs)
    exported = torch.export.export(Site(given, attrs), (given["lanes"],))
    close(exported.module()(given["lanes"]), want)


class Site(torch.nn.Module):
    def __init__(self, given: Any, attrs: Any) -> None:
        super().__init__()
        self.given, self.attrs = given, attrs

    def forward(self, lanes: torch.Tensor) -> Any:
        return fused_lanes(**{**self.given, "lanes": lanes}, **self.attrs)


@needs_c
def test_results_depend_on_threads_but_not_on_their_order() -> None:
    given, attrs = values("mhc", (4, 256, 4, 64), dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = (
            flat_pair(run(fused_lanes, copied(given, torch.float32), attrs)) for _ in "ab"
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        torch.set_num_threads(1)
        one = flat_pair(run(fused_lanes, given, attrs))
        for a, b in zip(first, one, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(before)


def test_tensors_are_regrouped_as_they_were() -> None:
    given, attrs = values("hc-shifts", (1, 2, 2, 3), dtype=torch.float64)
    inputs = Inputs(**given)
    again = Inputs(**regrouped(inputs.tensors, inputs.counts))
    assert again.counts == inputs.counts
    assert all(a is b for a, b in zip(again.tensors, inputs.tensors, strict=True))
    assert Plan(**attrs).generates
