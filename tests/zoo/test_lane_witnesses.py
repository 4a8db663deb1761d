"""Lanes against other people's code: transformers' DeepSeek-V4, the package hyper-connections, and
the conventions of Megatron-LM as a formula."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import multiway as mw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wirings_reference as reference
from parity_wirings import foreign

Site = Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]
DIMS = {"depth": 2, "width": 32, "num_heads": 2, "vocab": 23, "ratio": 2, "context": 32}


def case(wiring: str, dtype: torch.dtype, **options: Any) -> tuple[Any, dict[str, Tensor], Tensor]:
    """Sizes, random tensors under recorded names, tokens."""
    c = reference.Config(
        wiring=wiring, options=options, depth=2, width=32, heads=2, hidden=64, vocab=23
    )
    tokens = torch.randint(23, (2, 6), generator=torch.Generator().manual_seed(1))
    return c, reference.random_parameters(c, seed=7, dtype=dtype), tokens


def compiled(wiring: Any, params: dict[str, Tensor], folder: Path, fuse: bool) -> Any:
    spec = {"multiway": 1, "extends": "prenorm", "name": "case", "dims": DIMS, "wiring": wiring}
    model = mw.compile(spec, fuse=fuse, dtype=params["embed.weight"].dtype)
    save_file(params, folder / "w.safetensors")
    mw.import_weights(model, folder / "w.safetensors")
    return model


def logits(c: Any, params: dict[str, Tensor], tokens: Tensor, count: int, site: Site) -> Tensor:
    """A model whose lanes are someone else's. `site` turns old lanes into new ones."""
    body = reference.Body(c, params)
    lanes = torch.stack([params["embed.weight"][tokens]] * count, 2)
    for number in range(c.sublayers):
        lanes = site(number, lanes, lambda x, number=number: body.f(number, x))
    last = body.norm(site(-1, lanes, lambda x: x), "final_norm")
    return torch.einsum("btd,vd->btv", last, params["embed.weight"])


def compare(
    model: Any, want: Tensor, tokens: Tensor, theirs: dict[str, Tensor], *, tolerance: float
) -> None:
    """Logits, and gradients of a random sum of them, by recorded name."""
    got = model(tokens=tokens)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    probe = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=got.dtype)
    (got * probe).sum().backward()
    (want * probe).sum().backward()
    own = foreign(model, grads=True)
    for name, tensor in theirs.items():
        assert tensor.grad is not None, name
        largest = float(tensor.grad.abs().max())
        assert largest > 0, name
        difference = (own[name].reshape(tensor.shape) - tensor.grad).abs().max()
        assert float(difference) <= 10 * tolerance * largest, name


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(("count", "iterations"), [(4, 20), (3, 4)])
def test_manifold_lanes_are_those_of_deepseek_v4(
    count: int, iterations: int, fuse: bool, tmp_path: Path
) -> None:
    pytest.importorskip("transformers.models.deepseek_v4")
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

    c, params, tokens = case("mhc", torch.float32, n=count, sinkhorn_iters=iterations)
    config = DeepseekV4Config(hidden_size=32, hc_mult=count, hc_sinkhorn_iters=iterations)
    eps = {"norm": config.rms_norm_eps, "gate": config.hc_eps}
    sites = [theirs.DeepseekV4HyperConnection(config) for _ in range(c.sublayers)]
    head = theirs.DeepseekV4HyperHead(config)
    named: dict[str, Tensor] = {}
    for number, site in enumerate(sites):
        for ours, name in (("phi", "fn"), ("bias", "base"), ("alpha", "scale")):
            named[f"connection.sites.{number}.{ours}"] = getattr(site, name)
    for ours, name in (("head_phi", "hc_fn"), ("head_bias", "hc_base"), ("head_alpha", "hc_scale")):
        named[f"connection.{ours}"] = getattr(head, name)
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(params[name].reshape(tensor.shape))

    def turn(number: int, lanes: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        if number < 0:
            return head(lanes)
        post, comb, x = sites[number](lanes)
        return post[..., None] * f(x)[:, :, None] + torch.matmul(comb.mT, lanes)

    wiring = {
        "use": "mhc",
        "lanes": {
            "count": count,
            "weights": {
                "norm": {"kind": "rms_norm", "weight": False, "eps": eps["norm"]},
                "eps": eps["gate"],
                "sinkhorn": {"iterations": iterations, "eps": eps["gate"]},
            },
        },
    }
    model = compiled(wiring, params, tmp_path, fuse)
    compare(model, logits(c, params, tokens, count, turn), tokens, named, tolerance=3e-5)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_hyper_lanes_are_those_of_the_package(count: int, fuse: bool, tmp_path: Path) -> None:
    package = pytest.importorskip("hyper_connections")
    c, params, tokens = case("hc", torch.float64, n=count)
    sites = [
        package.HyperConnections(count, dim=32, layer_index=number).double()
        for number in range(c.sublayers)
    ]
    names = {
        "static_alpha": "static_alpha",
        "static_beta": "static_beta",
        "dyn_alpha": "dynamic_alpha_fn",
        "dyn_beta": "dynamic_beta_fn",
        "alpha_scale": "dynamic_alpha_scale",
        "beta_scale": "dynamic_beta_scale",
        "norm.weight": "norm.gamma",
    }
    wiring = {
        "use": "hc",
        "lanes": {
            "count": count,
            "weights": {"dynamic": {"norm": {"kind": "rms_norm", "eps": 1e-24}}},
        },
    }
    fresh = foreign(
        mw.compile(
            {"multiway": 1, "extends": "prenorm", "name": "case", "dims": DIMS, "wiring": wiring}
        )
    )
    params = {name: value for name, value in params.items() if not name.endswith("norm.bias")}
    named: dict[str, Tensor] = {}
    for number, site in enumerate(sites):
        for ours, name in names.items():
            tensor, path = site.get_parameter(name), f"connection.sites.{number}.{ours}"
            shift = 1 if ours == "norm.weight" else 0  # theirs is the gain less one
            torch.testing.assert_close(fresh[path].double(), tensor.detach() + shift)
            with torch.no_grad():
                tensor.copy_(params[path] - shift)
            named[path] = tensor

    def turn(number: int, lanes: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        if number < 0:
            return lanes.sum(2)
        batch = lanes.shape[0]
        x, add = sites[number](lanes.transpose(1, 2).flatten(0, 1))
        return add(f(x)).unflatten(0, (batch, count)).transpose(1, 2)

    model = compiled(wiring, params, tmp_path, fuse)
    want = logits(c, params, tokens, count, turn)
    compare(model, want, tokens, named, tolerance=1e-9)


# Megatron-LM: eps beside the root, exp as the start, not transposed, no eps on gates, no readout.

MEGATRON = {
    "use": "mhc",
    "lanes": {
        "count": 3,
        "output": "sum",
        "weights": {
            "norm": {"kind": "rms_norm", "weight": False, "eps": 0.1},
            "root": "outside",
            "eps": 0,
            "init": {"kind": "uniform", "bound": "sqrt(6 / (fan_in + 15))"},
            "sinkhorn": {"start": "exp", "iterations": 6, "eps": 0.01, "transpose": True},
        },
    },
}


@pytest.mark.parametrize("fuse", [False, True])
def test_manifold_lanes_of_megatron(fuse: bool, tmp_path: Path) -> None:
    c, params, tokens = case("mhc", torch.float64, n=3)
    params = {name: value for name, value in params.items() if "head" not in name}

    def turn(number: int, lanes: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        if number < 0:
            return lanes.sum(2)
        phi, alpha, bias = (
            params[f"connection.sites.{number}.{x}"] for x in ("phi", "alpha", "bias")
        )
        v = lanes.flatten(2)
        z = (v / (v.norm(dim=-1, keepdim=True) / math.sqrt(v.shape[-1]) + 0.1)) @ phi.T
        pre = torch.sigmoid(alpha[0] * z[..., :3] + bias[:3])
        post = 2 * torch.sigmoid(alpha[1] * z[..., 3:6] + bias[3:6])
        h = (alpha[2] * z[..., 6:] + bias[6:]).view(*z.shape[:-1], 3, 3)
        h = torch.exp(h - h.max(-1, keepdim=True).values)
        for _ in range(6):
            h = h / (h.sum(-1, keepdim=True) + 0.01)
            h = h / (h.sum(-2, keepdim=True) + 0.01)
        y = f((pre[..., None] * lanes).sum(2))
        return h @ lanes + post[..., None] * y[:, :, None]

    named = {name: t.requires_grad_() for name, t in params.items() if "connection" in name}
    model = compiled(MEGATRON, {n: t.detach() for n, t in params.items()}, tmp_path, fuse)
    compare(model, logits(c, params, tokens, 3, turn), tokens, named, tolerance=1e-9)


def test_the_projections_of_megatron_start_as_one_xavier_matrix() -> None:
    spec = {"multiway": 1, "extends": "prenorm", "name": "case", "dims": DIMS, "wiring": MEGATRON}
    theirs = torch.nn.init.xavier_uniform_(torch.empty(15, 96))
    bound = math.sqrt(6 / (15 + 96))
    assert float(theirs.abs().max()) <= bound
    phi = torch.stack([t for name, t in foreign(mw.compile(spec)).items() if name.endswith("phi")])
    assert 0.98 * bound < float(phi.abs().max()) <= bound
    assert abs(float(phi.std()) * math.sqrt(3) / bound - 1) < 0.05
