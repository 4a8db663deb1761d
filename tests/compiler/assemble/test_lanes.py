"""Parallel residual lanes: the ops against einsums, and against recorded sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from multiway.compiler.graph.registry import registry

OPS = registry()
SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "golden_wirings"
double = torch.float64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = double) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    return OPS[name].reference(*args, **kwargs)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# The formulas


def test_lanes_open_as_copies_and_split_as_pieces() -> None:
    x = random(2, 3, 6)
    close(call("spread", x, count=3), torch.stack([x, x, x], 2))
    pieces = call("split_lanes", x, count=2)
    close(pieces, torch.stack([x[..., :3], x[..., 3:]], 2))
    close(call("join_lanes", pieces), x)
    close(call("sum_lanes", pieces), x[..., :3] + x[..., 3:])


@pytest.mark.parametrize("lead", [(2, 3), ()])
def test_mixtures_of_lanes_are_einsums(lead: tuple[int, ...]) -> None:
    lanes, read, mix = random(2, 3, 4, 5), random(*lead, 4, 2), random(*lead, 4, 4)
    token = "bt" if lead else ""
    want = torch.einsum(f"btnd,{token}nr->btrd", lanes, read).reshape(2, 3, 10)
    close(call("read_lanes", lanes, read), want)
    close(call("mix_lanes", lanes, mix), torch.einsum(f"btjd,{token}jk->btkd", lanes, mix))
    y, write = random(2, 3, 5), random(*lead, 4, 1)
    want = lanes + torch.einsum(f"btd,{token}k->btkd", y, write[..., 0])
    close(call("write_lanes", lanes, y, write), want)
    y = random(2, 3, 20)
    want = lanes + torch.einsum(f"btkd,{token}k->btkd", y.view(2, 3, 4, 5), write[..., 0])
    close(call("write_pieces", lanes, y, write), want)


def test_weights_of_lanes_are_static_plus_scaled() -> None:
    dynamic, scale, static = random(2, 3, 4, 5), random(), random(4, 5)
    close(call("lane_weights", dynamic, scale, static), static + scale * dynamic)
    close(call("lane_weights", dynamic, None, static), static + dynamic)
    close(call("lane_weights", dynamic, scale), scale * dynamic)
    assert call("lane_weights", static=static) is static


@pytest.mark.parametrize(("factor", "eps"), [(1.0, 1e-2), (2.0, 0.0)])
def test_gates_are_sigmoids(factor: float, eps: float) -> None:
    z, scale, bias = random(2, 3, 4), random(), random(4)
    want = factor / (1 + (-(scale * z + bias)).exp()) + eps
    close(call("lane_gate", z, scale, bias, factor=factor, eps=eps), want[..., None])


def balanced(logits: torch.Tensor, start: str, iterations: int, eps: float) -> torch.Tensor:
    """Sinkhorn by its two vectors of factors: r_j E_jk c_k, for one matrix [N, N]."""
    e = (logits - logits.max(1, keepdim=True).values).exp()
    if start == "softmax":
        e = e / e.sum(1, keepdim=True) + eps
    rows, columns = torch.ones_like(e[:, 0]), torch.ones_like(e[0])
    for i in range(iterations):
        if start == "exp" or i > 0:
            rows = rows / (rows * (e @ columns) + eps)
        columns = columns / (columns * (rows @ e) + eps)
    return rows[:, None] * e * columns[None]


@pytest.mark.parametrize("start", ["softmax", "exp"])
@pytest.mark.parametrize(("count", "iterations"), [(2, 1), (3, 20), (4, 5)])
def test_sinkhorn_scales_rows_and_columns(start: str, count: int, iterations: int) -> None:
    z, scale, bias = random(2, 3, count**2), random() + 2, random(count**2)
    given = {"count": count, "start": start, "iterations": iterations, "eps": 1e-3}
    got = call("sinkhorn", z, scale, bias, transpose=False, **given)
    turned = call("sinkhorn", z, scale, bias, transpose=True, **given)
    for b in range(2):
        for t in range(3):
            logits = (scale * z[b, t] + bias).view(count, count)
            close(got[b, t], balanced(logits, start, iterations, 1e-3))
            close(turned[b, t], balanced(logits, start, iterations, 1e-3).t())


@pytest.mark.parametrize("start", ["softmax", "exp"])
def test_sinkhorn_is_nearly_doubly_stochastic(start: str) -> None:
    z = 1.5 * random(50, 16)
    one = torch.ones((), dtype=double)
    given = {"count": 4, "start": start, "iterations": 20, "eps": 1e-6, "transpose": False}
    m = call("sinkhorn", z, one, torch.zeros(16, dtype=double), **given)
    assert float((m.sum(-2) - 1).abs().max()) < 1e-5
    assert float((m.sum(-1) - 1).abs().max()) < 2e-2
    assert float(m.min()) > 0


@pytest.mark.parametrize("name", ["lane_gate", "sinkhorn"])
def test_gates_of_narrow_models_are_as_good_as_float32(name: str) -> None:
    z, scale, bias = random(40, 4).bfloat16(), random().bfloat16(), random(4).bfloat16()
    more: dict[str, Any] = {"factor": 1.0, "eps": 1e-6}
    if name == "sinkhorn":
        more = {"count": 2, "start": "exp", "iterations": 9, "eps": 1e-6, "transpose": False}
    want = call(name, z.double(), scale.double(), bias.double(), **more)
    got = call(name, z, scale, bias, **more)
    torch.testing.assert_close(got.double(), want, rtol=1.01 * 2**-8, atol=0)  # half a last place


# Recorded sites


def recorded(case: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    folder = SHARED / case
    if not folder.is_dir():
        pytest.skip(f"no recorded case at {folder}")
    return load_file(folder / "weights.safetensors"), load_file(folder / "outputs.safetensors")


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-5)


def hc_weights(params: dict[str, torch.Tensor], site: str, lanes: torch.Tensor) -> list[Any]:
    """The weights of read, mix and write of a recorded site, as its nodes make them."""
    alpha, beta = params[f"{site}.static_alpha"], params[f"{site}.static_beta"]
    statics = [alpha[:, :1], alpha[:, 1:], beta[:, None]]
    if f"{site}.norm.weight" not in params:
        return [call("lane_weights", static=static) for static in statics]
    norm = params[f"{site}.norm.weight"], params[f"{site}.norm.bias"]
    z = call("layer_norm", lanes, *norm, eps=1e-5)
    alpha, beta = params[f"{site}.dyn_alpha"].t(), params[f"{site}.dyn_beta"][None]
    scales = [params[f"{site}.{name}_scale"] for name in ("alpha", "alpha", "beta")]
    found = []
    for w, scale, static in zip((alpha[:1], alpha[1:], beta), scales, statics, strict=True):
        dynamic = call("activation", call("linear", z, w), kind="tanh")
        found.append(call("lane_weights", dynamic, scale, static))
    return found


@pytest.mark.parametrize("case", ["hc/static_n2", "hc/dynamic_n2"])
def test_recorded_hyper_connections(case: str) -> None:
    params, values = recorded(case)
    near(call("spread", values["x0"], count=2), values["state.0"])
    for l in range(6):  # noqa: E741
        lanes = values[f"state.{l}"]
        read, mix, write = hc_weights(params, f"connection.sites.{l}", lanes)
        if f"alpha.{l}" in values:
            near(torch.cat([read, mix], -1), values[f"alpha.{l}"])
            near(write[..., 0], values[f"beta.{l}"])
        near(call("read_lanes", lanes, read), values[f"read.{l}"])
        mixed = call("mix_lanes", lanes, mix)
        near(call("write_lanes", mixed, values[f"out.{l}"], write), values[f"state.{l + 1}"])
    near(call("sum_lanes", values["state.6"]), values["wired"])


def test_recorded_manifold_constrained_hyper_connections() -> None:
    params, values = recorded("mhc/n3")
    for l in range(6):  # noqa: E741
        lanes, site = values[f"state.{l}"], f"connection.sites.{l}"
        v = call("rms_norm", call("join_lanes", lanes), eps=1e-6)
        parts = params[f"{site}.phi"].split([3, 3, 9])
        biases = params[f"{site}.bias"].split([3, 3, 9])
        zs = [call("linear", v, part) for part in parts]
        alpha = params[f"{site}.alpha"].unbind()
        pre = call("lane_gate", zs[0], alpha[0], biases[0], factor=1.0, eps=1e-6)
        post = call("lane_gate", zs[1], alpha[1], biases[1], factor=2.0, eps=0.0)
        res = call(
            "sinkhorn",
            zs[2],
            alpha[2],
            biases[2],
            **{"count": 3, "start": "softmax", "iterations": 20, "eps": 1e-6, "transpose": False},
        )
        near(pre[..., 0], values[f"pre.{l}"])
        near(post[..., 0], values[f"post.{l}"])
        near(res, values[f"res.{l}"])
        near(call("read_lanes", lanes, pre), values[f"read.{l}"])
        mixed = call("mix_lanes", lanes, res)
        near(call("write_lanes", mixed, values[f"out.{l}"], post), values[f"state.{l + 1}"])
    v = call("rms_norm", call("join_lanes", values["state.6"]), eps=1e-6)
    head = call("linear", v, params["connection.head_phi"])
    scale, bias = params["connection.head_alpha"], params["connection.head_bias"]
    weights = call("lane_gate", head, scale, bias, factor=1.0, eps=1e-6)
    near(weights[..., 0], values["head"])
    near(call("read_lanes", values["state.6"], weights), values["wired"])
