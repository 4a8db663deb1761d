"""Every wiring and option against the plain formulas, and how wirings start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import multiway as mw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wirings_reference as reference
from parity_wirings import foreign, wiring_of

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden_wirings"
RECORDED = sorted(path.parent for path in SHARED.glob("*/*/config.json"))
CASES: list[tuple[str, dict[str, Any]]] = [
    ("prenorm", {}),
    ("postnorm", {}),
    *[("hc", {"n": n, "dynamic": dynamic}) for n in (1, 2, 4) for dynamic in (False, True)],
    *[("frac", {"m": m, "dynamic": dynamic}) for m in (1, 2, 4) for dynamic in (False, True)],
    *[("mhc", {"n": n, "sinkhorn_iters": k}) for n, k in ((1, 20), (2, 1), (3, 5), (4, 20))],
    *[("denseformer", {"dilation": k}) for k in (1, 2, 3, 9)],
    *[
        ("muddformer", {"dynamic": dynamic, "qkv": qkv, "prepost_norm": prepost})
        for dynamic in (True, False)
        for qkv in (True, False)
        for prepost in (True, False)
    ],
    *[("laurel", {"variant": variant, "rank": 3}) for variant in ("rw", "lr", "rw_lr")],
    ("laurel", {"rank": 40}),
    *[("attnres", {"heads": h, "block_size": k}) for h, k in ((1, 0), (2, 0), (1, 2), (1, 4))],
    *[
        ("mhar", {"heads": h, "block_size": k})
        for h, k in ((4, 0), (4, 3), (8, 1), (2, 7), (4, 20))
    ],
    *[
        ("dar", {"heads": h, "block": block, "gate": gate})
        for h, block, gate in (
            (1, False, "none"),
            (4, True, "none"),
            (2, False, "zero"),
            (1, True, "zero"),
        )
    ],
]


def name_of(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *[f"{name}={value}" for name, value in case[1].items()]])


def config(case: tuple[str, dict[str, Any]], **sizes: int) -> reference.Config:
    numbers = {"depth": 3, "width": 32, "heads": 2, "hidden": 64, "vocab": 23} | sizes
    return reference.Config(wiring=case[0], options=case[1], **numbers)


def spec_of(c: reference.Config) -> dict[str, Any]:
    dims = {"depth": c.depth, "width": c.width, "num_heads": c.heads, "vocab": c.vocab}
    return {
        "multiway": 1,
        "extends": "prenorm",
        "name": "case",
        "dims": {**dims, "ratio": c.hidden / c.width, "context": 32},
        "wiring": wiring_of(c.wiring, dict(c.options)),
    }


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("fuse", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_wiring_is_its_formulas(case: Any, fuse: bool, tmp_path: Path) -> None:
    """Names, shapes, logits, loss and every gradient, in float64."""
    c = config(case)
    params = reference.random_parameters(c, seed=3)
    model = mw.compile(spec_of(c), fuse=fuse, dtype=torch.float64)
    save_file(params, tmp_path / "w.safetensors")
    mw.import_weights(model, tmp_path / "w.safetensors")
    tokens = torch.randint(c.vocab, (2, 7), generator=torch.Generator().manual_seed(1))
    for value in params.values():
        value.requires_grad_()
    want = reference.forward(c, params, tokens)
    close(model(tokens=tokens), want["logits"])
    labels = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], 1)
    loss = model.run("loss", tokens=tokens, labels=labels)[0]
    close(loss, want["loss"])
    for tensor in model.parameters():
        tensor.grad = torch.zeros_like(tensor)
    loss.backward()
    want["loss"].backward()
    for name, got in foreign(model, grads=True).items():
        found = params[name].grad
        close(got, torch.zeros_like(got) if found is None else found)


@pytest.mark.skipif(not RECORDED, reason=f"no recorded cases at {SHARED}")
@pytest.mark.parametrize("folder", RECORDED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_formulas_are_the_recorded_ones(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    c, params = reference.config_of(data["config"]), load_file(folder / "weights.safetensors")
    assert reference.shapes(c) == {name: tuple(value.shape) for name, value in params.items()}
    want = load_file(folder / "outputs.safetensors")
    tokens = load_file(folder / "inputs.safetensors")["tokens"]
    for value in params.values():
        value.requires_grad_()
    found = reference.forward(c, params, tokens)
    for name in ("wired", "logits", "loss"):
        torch.testing.assert_close(found[name], want[name], rtol=1e-5, atol=3e-5)
    found["loss"].backward()
    for name, grad in load_file(folder / "grads.safetensors").items():
        got = params[name].grad
        assert got is not None
        assert float((got - grad).abs().max()) <= 1e-4 * float(grad.abs().max()) + 1e-6, name


# Initial values

STARTS: list[tuple[str, dict[str, Any]]] = [
    *CASES,
    ("mhc", {"n": 3, "alpha_init": 0.5, "res_bias_diag": 4.0, "phi_std": 0.1}),
    ("laurel", {"rank": 5}),
]


@pytest.mark.parametrize("case", STARTS, ids=name_of)
def test_a_wiring_starts_as_its_paper_says(case: Any) -> None:
    """Patterns to the last bit but one; draws by mean, spread and the fourth power."""
    c = config(case, depth=4)
    models = [foreign(mw.compile(spec_of(c), fuse=False, seed=seed)) for seed in range(2)]
    for name, shape in reference.shapes(c).items():
        want = reference.start(c, name, shape)
        value = torch.stack([tensors[name] for tensors in models])
        assert value.shape[1:] == shape
        if isinstance(want, torch.Tensor):
            torch.testing.assert_close(value, want.expand_as(value), rtol=1e-7, atol=0)
            continue
        n = value.numel() ** 0.5
        assert abs(float(value.mean())) < 5 * want / n, name
        assert abs(float(value.std()) / want - 1) < 5 / n, name
        kurtosis = float((value / want).pow(4).mean())
        assert abs(kurtosis - 3) < 50 / n, name  # the fourth power of a normal law spreads by 9.8


SAME = [
    *[("denseformer", {"dilation": k}) for k in (1, 2)],
    *[case for case in CASES if case[0] in ("muddformer", "laurel", "frac")],
    *[case for case in CASES if case[0] == "dar" and case[1]["gate"] == "zero"],
]


@pytest.mark.parametrize("case", SAME, ids=name_of)
def test_a_fresh_model_is_its_body_with_plain_residuals(case: Any) -> None:
    tokens = torch.randint(23, (2, 9), generator=torch.Generator().manual_seed(2))
    models = []
    for each in (case, ("prenorm", {})):
        model = mw.compile(spec_of(config(each)), fuse=False, dtype=torch.float64)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "blocks" in name and name.endswith(("query.weight", "output.weight")):
                    p.mul_(10)
            models.append(model)
    own = dict(models[0].named_parameters())
    with torch.no_grad():
        for name, p in models[1].named_parameters():
            source = own.get(name, own.get(name.replace("attention.norm", "attention.norm.q")))
            assert source is not None
            p.copy_(source)
    torch.testing.assert_close(
        models[0](tokens=tokens), models[1](tokens=tokens), rtol=0, atol=1e-12
    )
