"""Experts against other people's: blocks of transformers, outputs, gradients, losses of routers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import multiway as mw

transformers = pytest.importorskip("transformers")

D, F, X, K = 16, 12, 8, 3
PATH = "blocks.0.ffn"


@pytest.fixture(params=["float64", "float32"])
def dtype(request: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, request.param)
    return found


@pytest.fixture(params=[True, False], ids=["fused", "reference"])
def fuse(request: Any) -> bool:
    return bool(request.param)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    tight = a.dtype == torch.float64
    torch.testing.assert_close(a, b, rtol=1e-9 if tight else 1e-4, atol=1e-11 if tight else 1e-5)


class Part:
    """The feed-forward part of a model's only block: what it reads, adds, and sends back."""

    def __init__(
        self, ffn: dict[str, Any], output: str, *, dtype: torch.dtype, fuse: bool, vocab: int = 50
    ) -> None:
        spec = mw.load(
            {
                "multiway": 1,
                "name": "one",
                "dims": {"depth": 1, "width": D, "vocab": vocab},
                "inputs": {"text": {"modality": "text", "vocab": "vocab", "context": 32}},
                "block": {
                    "norm": {"kind": "rms_norm", "eps": 1e-6},
                    "attention": {"heads": 2},
                    "ffn": ffn,
                },
                "heads": {"mlm": {"kind": "masked", "predict": "text", "classes": "vocab"}},
            }
        )
        taps = [PATH + ".norm", PATH + output]
        self.model = mw.compile(spec, dtype=dtype, fuse=fuse, taps=taps)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(0.0, 0.5, generator=generator)
        self.taps = taps

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.model.get_parameter(f"{PATH}.{name}")

    def run(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, found = self.model(text=tokens)
        return tuple(found[tap] for tap in self.taps)  # type: ignore[return-value]


def compare(
    part: Part, theirs: torch.nn.Module, pairs: dict[str, torch.Tensor], tokens: torch.Tensor
) -> None:
    """Outputs and gradients of x and parameters. pairs: our names and their parameters."""
    x, y = part.run(tokens)
    probe = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    ours = [part[name] for name in pairs]
    mine = torch.autograd.grad((y * probe).sum(), [x, *ours])
    given = x.detach().requires_grad_()
    found = theirs(given)
    close(y, found)
    theirs.zero_grad()
    (found * probe).sum().backward()
    close(mine[0], given.grad)
    for grad, want in zip(mine[1:], pairs.values(), strict=True):
        assert want.grad is not None
        close(grad, want.grad)


def tokens_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_experts_of_deepseek_v3(dtype: torch.dtype, fuse: bool, normalise: bool) -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    experts = {
        "route": "top_k",
        "count": X,
        "k": K,
        "score": "sigmoid",
        "normalise": normalise,
        "scale": 2.5,
        "groups": {"count": 4, "kept": 2, "by": "top_2_sum"},
        "shared": {"hidden": 2 * F},
        "balance_bias": {"rate": 0.001},
    }
    ffn = {"hidden": F, "activation": "silu", "gate": True, "experts": experts}
    part = Part(ffn, ".added", dtype=dtype, fuse=fuse)
    config = transformers.DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=F,
        n_routed_experts=X,
        num_experts_per_tok=K,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        norm_topk_prob=normalise,
        routed_scaling_factor=2.5,
    )
    theirs = deepseek.DeepseekV3MoE(config).to(dtype)
    with torch.no_grad():
        theirs.gate.weight.copy_(part["router.weight"])
        theirs.gate.e_score_correction_bias.copy_(part["router.balance"])
        theirs.experts.gate_up_proj.copy_(torch.cat([part["gate.weight"], part["up.weight"]], 1))
        theirs.experts.down_proj.copy_(part["down.weight"])
        for name in ("gate", "up", "down"):
            getattr(theirs.shared_experts, f"{name}_proj").weight.copy_(
                part[f"shared.{name}.weight"]
            )
    pairs = {"down.weight": theirs.experts.down_proj, "router.weight": theirs.gate.weight}
    pairs["shared.down.weight"] = theirs.shared_experts.down_proj.weight
    whole = theirs.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            if dtype == torch.float64:  # which the router of transformers makes float32
                patch.setattr(torch, "float32", dtype)
            return whole(x)

    theirs.forward = forward
    compare(part, theirs, pairs, tokens_of(2, 9))


@pytest.mark.parametrize("capacity", [1, 2, 64])
def test_the_experts_of_switch(dtype: torch.dtype, fuse: bool, capacity: int) -> None:
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    experts = {"route": "top_k", "count": 4, "k": 1, "capacity": {"slots": capacity}}
    ffn = {"hidden": F, "activation": "relu", "experts": experts}
    part = Part(ffn, ".mixed", dtype=dtype, fuse=fuse)
    config = transformers.SwitchTransformersConfig(
        d_model=D,
        d_ff=F,
        num_experts=4,
        expert_capacity=capacity,
        dropout_rate=0.0,
        dense_act_fn="relu",
    )
    theirs = switch.SwitchTransformersSparseMLP(config).to(dtype).eval()
    theirs.router.dtype = dtype  # a config takes no wider one than float32
    with torch.no_grad():
        theirs.router.classifier.weight.copy_(part["router.weight"])
        for i in range(4):
            each = theirs.experts[f"expert_{i}"]
            each.wi.weight.copy_(part["up.weight"][i])
            each.wo.weight.copy_(part["down.weight"][i])
    pairs = {"router.weight": theirs.router.classifier.weight}
    compare(part, theirs, pairs, tokens_of(2, 9))
    for i in range(4):
        want = theirs.experts[f"expert_{i}"].wo.weight.grad
        _, y = part.run(tokens_of(2, 9))
        probe = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
        (mine,) = torch.autograd.grad((y * probe).sum(), [part["down.weight"]])
        close(mine[i], torch.zeros_like(mine[i]) if want is None else want)


def test_losses_of_routers_are_those_of_switch() -> None:
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    taps = [f"blocks.{i}.ffn.router.logits" for i in (1, 3)]
    model = mw.compile(roomy(), head="mlm", dtype=torch.float64, taps=taps)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (3, 11), generator=generator)
    given = {"text": tokens, "text_padding": torch.zeros(3, 11, dtype=torch.bool)}
    with torch.no_grad():  # and so without noise
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
        loss, metrics, tapped = model.loss(**given, labels=tokens)
    joined = torch.cat([tapped[tap] for tap in taps], 1)  # as transformers joins layers
    probabilities = joined.softmax(-1)
    balance = switch.load_balancing_loss_func(probabilities, probabilities.argmax(-1)[..., None])
    z = switch.router_z_loss_func(joined)
    torch.testing.assert_close(metrics["balance"], balance.double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics["z"], z.double(), rtol=1e-6, atol=1e-7)
    whole = metrics["task"] + 0.01 * metrics["balance"] + 0.001 * metrics["z"]
    torch.testing.assert_close(loss, whole)


def roomy() -> mw.Spec:
    """A Switch of four layers in which every token finds a place."""
    experts = mw.load("switch-test").blocks[1].ffn.experts
    assert experts is not None
    changed = experts.node.plain() | {"capacity": {"factor": 4}}
    return mw.load(
        {
            "multiway": 1,
            "extends": "switch-test",
            "name": "roomy",
            "dims": {"depth": 4},
            "layers": [{"where": "layer % 2 == 1", "ffn": {"experts": changed}}],
        }
    )
