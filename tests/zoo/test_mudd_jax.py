"""MUDD as it is trained in JAX: forward with every pair of its norm options, start, sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

import multiway as mw
from multiway.runtime.checkpoints.layout import laid_shape, taken

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wirings_reference as reference
from wirings_reference import rms

GENERATOR = "{}.mix.norm.weight"
# (mudd_prenorm, mudd_postnorm) and what says so.
OPTIONS: dict[tuple[bool, bool], dict[str, Any]] = {
    (True, True): {"use": "mudd_prepost"},
    (True, False): {
        "use": "mudd",
        "mix": {
            "first_block": "three_norms",
            "source_norm": True,
            "generator": {"norm": {"weight": True}},
        },
    },
    (False, True): {
        "use": "mudd_prepost",
        "mix": {
            "source_norm": False,
            "static": {"init": "newest"},
            "generator": {"norm": {"weight": False}},
        },
    },
    (False, False): {"use": "mudd", "mix": {"first_block": "three_norms"}},
}
DIMS = {"depth": 3, "width": 32, "num_heads": 2, "vocab": 23, "ratio": 2, "context": 32}


def spec_of(prenorm: bool, postnorm: bool) -> dict[str, Any]:
    wiring = OPTIONS[prenorm, postnorm]
    return {"multiway": 1, "extends": "prenorm", "name": "case", "dims": DIMS, "wiring": wiring}


def jax_forward(
    body: reference.Body, scales: list[Tensor], x0: Tensor, prenorm: bool, postnorm: bool
) -> Tensor:
    """Layer by layer: four inputs, the layer, the generator, the sums, what they are added to."""
    c = body.c
    hids = [rms(x0) * body.wire("pre_norms.0.weight") if prenorm else x0]
    inputs = [x0] * 4
    for i in range(c.depth):
        h = inputs[-1] + body.f(2 * i, *inputs[:3])
        x = h + body.f(2 * i + 1, h)
        g = rms(x) * scales[i]
        hidden = gelu(torch.einsum("btd,kd->btk", g, body.wire(f"w1.{i}.weight")))
        dynamic = torch.einsum("btk,ok->bto", hidden, body.wire(f"w2.{i}.weight"))
        ways, sources = body.wire(f"static.{i}").shape
        w = dynamic.reshape(*dynamic.shape[:2], ways, sources) + body.wire(f"static.{i}")
        hids.append(rms(x) * body.wire(f"pre_norms.{i + 1}.weight") if prenorm else x)
        sums = [torch.zeros_like(x) for _ in range(ways)]
        for way in range(ways):
            for source, value in enumerate(hids):
                sums[way] = sums[way] + w[:, :, way, source, None] * value
        if postnorm:
            sums[-1] = rms(sums[-1]) * body.wire(f"post_norms.{i}.weight")
            sums = [x + each for each in sums]
        inputs = sums
    return inputs[0]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(("prenorm", "postnorm"), OPTIONS)
def test_the_forward_of_every_option(prenorm: bool, postnorm: bool, fuse: bool) -> None:
    c = reference.Config(
        wiring="muddformer",
        options={"prepost_norm": True},  # more parameters than some options have
        depth=3,
        width=32,
        heads=2,
        hidden=64,
        vocab=23,
    )
    params = reference.random_parameters(c, seed=5)
    model = mw.compile(spec_of(prenorm, postnorm), fuse=fuse, dtype=torch.float64)
    own = dict(model.named_parameters())
    named = [GENERATOR.format(f"blocks.{i}") for i in (1, 2)] + [GENERATOR.format("output")]
    scales = [own.get(name, torch.ones(32, dtype=torch.float64)) for name in named]
    assert all(name in own for name in named) == prenorm
    pairs, rest = mw.rename_table(model.spec).pairs(own)
    assert set(rest) == set(named) & set(own)
    with torch.no_grad():
        for pair in pairs:
            shapes = [own[n].shape for n in pair.ours]
            assert params[pair.theirs].shape == laid_shape(pair, shapes)
            for name, part in zip(pair.ours, taken(pair, params[pair.theirs], shapes), strict=True):
                own[name].copy_(part)
        for name in rest:
            own[name].uniform_(0.5, 1.5)
    tokens = torch.randint(23, (2, 7), generator=torch.Generator().manual_seed(1))
    body = reference.Body(c, params)
    wired = jax_forward(body, scales, params["embed.weight"][tokens], prenorm, postnorm)
    want = torch.einsum("btd,vd->btv", body.norm(wired, "final_norm"), params["embed.weight"])
    got = model(tokens=tokens)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    probe = torch.randn(got.shape, dtype=torch.float64)
    inputs = [own[name] for name in rest]
    if inputs:  # of the generators' gains; other gradients are compared with the recorded wirings
        grads = [torch.autograd.grad((x * probe).sum(), inputs) for x in (got, want)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_trained_model_is_that_of_the_code() -> None:
    spec = mw.load("mudd-jax-405m")
    widths = [block.ffn.hidden for block in spec.blocks]
    assert widths == [round(2816 * (i / 23 + 0.5) / 128) * 128 for i in range(24)]
    assert sum(widths) == 24 * 2816  # the baseline's, spread over the depth
    assert {block.ffn.hidden for block in mw.load("transformer-pp-405m").blocks} == {2816}
    model = mw.compile(spec, device="meta")
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for i in range(24):
        ways, sources = (4, i + 2) if i < 23 else (1, 25)
        at = f"blocks.{i + 1}.mix" if i < 23 else "output.mix"
        hidden = 64 * (ways * sources * (4 if i == 23 else 1) // 64 + 1)
        assert own[f"{at}.hidden.weight"] == (hidden, 1024)
        assert own[f"{at}.output.weight"] == (ways * sources, hidden)
        assert own[f"{at}.static"] == (ways, sources)
        assert own[f"blocks.{i}.attention.norm.k.weight"] == (1024,)


def test_the_trained_model_starts_as_in_the_code() -> None:
    model = mw.compile("mudd-jax-test", set={"depth": 4})
    for name, p in model.named_parameters():
        if ".static" in name or ".mix.output." in name:
            want = 0.0
        elif "sum_norm" in name:
            want = 0.001
        elif "norm" in name:
            want = 1.0
        else:
            spread = 32**-0.5 if ".mix.hidden." in name else 0.006
            assert abs(float(p.detach().std()) / spread - 1) < 5 / p.numel() ** 0.5, name
            continue
        assert bool((p == want).all()), name
