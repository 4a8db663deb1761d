"""What routings mean, by models whose answer is known: in float64, where it can be compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fused import assert_equal
from strategies import random_inputs, randomise
from torch import Tensor, fx
from torch.nn import functional as F

import multiway as mw
from multiway.compiler.analysis.costs import costs
from multiway.compiler.graph.registry import registry
from multiway.compiler.ops.hash_gates import FACTOR, MODULUS
from multiway.compiler.pipeline import Options, Stages
from multiway.runtime.block import calls_of
from multiway.runtime.model import Model
from multiway.runtime.training.balance import Summary, summary, update_balance

Mappings = dict[str, Any]
VOCAB, X = 23, 4
TWO = {"route": "top_k", "count": X, "k": 2}
ONE = {"route": "top_k", "count": 1, "k": 1, "score": "sigmoid", "normalise": True}
HASH = {"route": "hash", "count": X}
CHOICE = {"route": "expert_choice", "count": X, "factor": 1.5}
PARTS = ("norm", "attention", "ffn")


def text_model(experts: Mappings | None, *, parts: Any = ("ffn",)) -> Mappings:
    """A text encoder without positions, of two layers, some parts of which have experts."""
    block: Mappings = {
        "norm": {"kind": "layer_norm", "eps": 1e-5},
        "attention": {"heads": 2, "bias": True},
        "ffn": {"hidden": 6, "bias": True, "gate": True, "activation": "silu"},
    }
    for part in parts if experts else ():
        block[part] = block[part] | {"experts": experts}
    return {
        "multiway": 1,
        "name": "routed",
        "dims": {"depth": 2, "width": 8, "vocab": VOCAB},
        "inputs": {"text": {"modality": "text", "vocab": "vocab", "padding": "right"}},
        "block": block,
        "heads": {
            "features": {"kind": "features"},
            "mlm": {"kind": "masked", "predict": "text", "classes": "vocab"},
        },
    }


def decoder(experts: Mappings) -> Mappings:
    spec = text_model(experts)
    spec["block"]["attention"] |= {"mask": "causal"}
    return spec | {"heads": {"lm": {"kind": "causal_lm", "tie": True}}}


def pair_model(experts: Mappings | None, *, parts: Any = ("ffn",)) -> Mappings:
    """Audio and text, in one sequence."""
    spec = text_model(experts, parts=parts)
    spec["inputs"] = {"audio": {"modality": "audio", "features": 5}, **spec["inputs"]}
    return spec


def model_of(spec: Mappings, *, head: str | None = None, **options: Any) -> Model:
    whole = mw.load(spec)
    head = head or next(iter(whole.heads))
    model = mw.compile(whole.for_head(head), dtype=torch.float64, **options)
    randomise(model)
    return model


def give(model: Model, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def ids(*shape: int, seed: int = 0) -> Tensor:
    """Token ids, no two alike in a row: alike, an expert that chooses takes the earlier."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(VOCAB, generator=generator)[: shape[1]] for _ in range(shape[0])]
    return torch.stack(rows)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def slopes(model: Model, found: Tensor) -> dict[str, Tensor]:
    """Gradients of parameters, zeros where nothing is read."""
    probe = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(5))
    params = dict(model.named_parameters())
    made = torch.autograd.grad((found * probe).sum(), list(params.values()), allow_unused=True)
    pairs = zip(params.items(), made, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}


# Experts are copies of a part


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "reference"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_all_experts_of_a_router_are_its_mixture(score: str, fuse: bool) -> None:
    at = "blocks.1.ffn"
    taps = [f"{at}.norm", f"{at}.mixed"]
    experts = {**TWO, "k": X, "score": score, "scale": 3}
    model = model_of(text_model(experts), taps=taps, fuse=fuse)
    _, found = model(text=ids(2, 7))
    x, p = found[taps[0]], {name: p for name, p in model.named_parameters() if at in name}

    def plain(i: int, x: Tensor) -> Tensor:
        gate, up = (
            F.linear(x, p[f"{at}.{name}.weight"][i], p[f"{at}.{name}.bias"][i])
            for name in ("gate", "up")
        )
        return F.linear(F.silu(gate) * up, p[f"{at}.down.weight"][i], p[f"{at}.down.bias"][i])

    logits = x @ p[f"{at}.router.weight"].T
    scores = logits.exp() / logits.exp().sum(-1, keepdim=True)
    if score == "sigmoid":
        scores = 1 / (1 + (-logits).exp())
    close(found[taps[1]], sum(3 * scores[..., i : i + 1] * plain(i, x) for i in range(X)))


@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), PARTS], ids=str)
@pytest.mark.parametrize("experts", [ONE, {**HASH, "count": 1}], ids=lambda e: e["route"])
def test_one_expert_is_the_part_itself(experts: Mappings, parts: tuple[str, ...]) -> None:
    plain, routed = model_of(text_model(None)), model_of(text_model(experts, parts=parts))
    own = {name: p.detach() for name, p in plain.named_parameters()}
    shapes = {name: p.shape for name, p in routed.named_parameters()}
    unread = {name: torch.zeros(s) for name, s in shapes.items() if "router" in name}
    give(routed, {n: own[n].view(s) for n, s in shapes.items() if n in own} | unread)
    want, found = plain(text=ids(2, 7)), routed(text=ids(2, 7))
    close(found, want)
    wanted, got = slopes(plain, want), slopes(routed, found)
    assert wanted.keys() == got.keys() - unread.keys()
    for name, slope in wanted.items():
        close(got[name].view_as(slope), slope)


@pytest.mark.parametrize("parts", [("ffn",), PARTS], ids=str)
@pytest.mark.parametrize("inside", [None, TWO], ids=["ways", "experts in them"])
def test_ways_that_are_equal_are_no_ways(inside: Mappings | None, parts: tuple[str, ...]) -> None:
    by = {"route": "modality"} | ({"inside": inside} if inside else {})
    plain = model_of(pair_model(inside, parts=parts))
    routed = model_of(pair_model(by, parts=parts))
    own, shapes = dict(plain.named_parameters()), dict(routed.named_parameters())
    bare = {name: name.replace(".audio.", ".").replace(".text.", ".") for name in shapes}
    assert len(set(bare.values()) & set(own)) < len(shapes), "some parameter has two copies"
    give(routed, {name: own[name if name in own else bare[name]] for name in shapes})
    audio = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(routed(audio=audio, text=ids(2, 7)), plain(audio=audio, text=ids(2, 7)))


def test_ways_of_modalities_that_are_not_there_have_no_part_in_it() -> None:
    model = model_of(pair_model({"route": "modality", "inside": TWO}))
    plain = model_of(text_model(TWO))
    own = {n.replace(".text.", "."): p for n, p in model.named_parameters() if "blocks" in n}
    names = [name for name, _ in plain.named_parameters()]
    give(plain, dict(model.named_parameters()) | {n: own[n] for n in names if n in own})
    found = model.run("forward_text", text=ids(2, 7))
    close(found, plain(text=ids(2, 7)))
    read = {name for name, slope in slopes(model, found).items() if slope.abs().max() > 0}
    assert not any(".audio." in name for name in read)
    assert {"blocks.0.ffn.router.text.weight", "blocks.1.ffn.up.text.weight"} <= read


# Who sees whom


@pytest.mark.parametrize("experts", [TWO, HASH, CHOICE], ids=lambda e: e["route"])
def test_without_positions_the_order_of_tokens_is_nothing(experts: Mappings) -> None:
    model, text = model_of(text_model(experts, parts=PARTS)), ids(2, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    close(model(text=text[:, order]), model(text=text)[:, order])


@pytest.mark.parametrize("experts", [TWO, HASH, CHOICE], ids=lambda e: e["route"])
def test_a_row_alone_is_the_row_in_a_batch(experts: Mappings) -> None:
    model, text = model_of(text_model(experts)), ids(3, 9)
    for length in (9, 1):
        alone = [model(text=row[None, :length]) for row in text]
        close(torch.cat(alone), model(text=text[:, :length]))


CAUSAL: dict[str, tuple[Mappings, bool]] = {
    "top_k": (TWO, True),
    "hash": (HASH, True),
    "room for all": ({**TWO, "capacity": {"slots": 12}, "acausal": True}, True),
    # A later token is served before the second choices of earlier ones.
    "capacity": ({**TWO, "capacity": {"slots": 3}, "acausal": True}, False),
    "expert_choice": ({**CHOICE, "acausal": True}, False),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_later_tokens_change_earlier_logits_where_the_language_says_so(name: str) -> None:
    experts, causal = CAUSAL[name]
    model, text = model_of(decoder(experts)), ids(3, 12)
    changed = torch.cat([text[:, :8], (text[:, 8:] + 1) % VOCAB], 1)
    before, after = (model(text=each)[:, :8].detach() for each in (text, changed))
    assert (float((before - after).abs().max()) < 1e-12) == causal


def test_experts_that_no_token_goes_to_get_zeros() -> None:
    for experts, used in ((TWO, 2), (HASH, 1)):
        model = model_of(text_model(experts))
        got = slopes(model, model(text=torch.tensor([[7]])))
        for name in ("gate", "up", "down"):
            slope = got[f"blocks.1.ffn.{name}.weight"]
            asked = slope.flatten(1).abs().amax(1) > 0
            assert int(asked.sum()) == used and slope.isfinite().all()
    assert asked.nonzero().item() == 8 * FACTOR % MODULUS * FACTOR % MODULUS % X


def test_experts_past_their_places_give_nothing() -> None:
    # The first two experts are asked by three tokens of four; behind them is padding.
    gates = torch.tensor([[[0.6, 0.4, 0], [0, 0.7, 0.3], [0.8, 0.2, 0], [0.5, 0.4, 0], [0, 1, 0]]])
    padding = torch.tensor([[False] * 4 + [True]])
    limit = registry()["limit_experts"].reference

    def served(rows: int, over: str, padding: Tensor | None = padding, **room: Any) -> Any:
        attrs = {"k": 2, "slots": 0, "factor": 0.0, "over": over, **room}
        given = None if padding is None else padding.repeat(rows, 1)
        found = limit(gates.repeat(rows, 1, 1), given, **attrs)
        assert torch.equal(found[found != 0], gates.repeat(rows, 1, 1)[found != 0])
        return (found != 0).int().tolist()

    # The first choice of the second token, then the second choice of the first.
    alone = [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert served(2, "row", slots=2) == [alone, alone]
    # The first choice of the other row's second token is before any second choice.
    first, second = [[1, 0, 0], *alone[1:]], [[0] * 3, [0, 1, 1], *[[0] * 3] * 3]
    assert served(2, "batch", slots=2) == [first, second]
    # 0.75 * 2 * 4 / 3 = 2 places; of five tokens 2.5, so 3.
    assert served(2, "row", factor=0.75) == [alone, alone]
    assert served(1, "row", None, factor=0.75)[0][3:] == [[1, 0, 0], [0, 1, 0]]


# Lowered code


def lines(module: fx.GraphModule) -> int:
    graphs = [module, *dict(calls_of(module)).values()]
    return sum(each.code.count("\n") for each in graphs)


@pytest.mark.parametrize("experts", [TWO, HASH, CHOICE], ids=lambda e: e["route"])
def test_code_does_not_grow_with_experts(experts: Mappings) -> None:
    sizes = set()
    for count in (2, 16):
        spec = text_model({**experts, "count": count}, parts=PARTS)
        model = model_of(spec)
        graph = Stages(model.spec, Options())["forward"][-1].graph
        ops = [record.op for record in graph]
        assert ops.count("moe_ffn") == 2 and ops.count("moe_linear") == 8
        assert not {"expert_linear", "expert_affine", "mix_experts", "spread"} & set(ops)
        sizes.add((len(ops), lines(model.programs["forward"])))
    assert len(sizes) == 1


EXPORTED = [
    ("mixtral-test", "lm", 1, torch.float64),
    # The first layer has no experts.
    pytest.param("deepseek-moe-test", "lm", 2, torch.float32, marks=pytest.mark.slow),
    pytest.param("beit3-moe-test", "vqa", 1, torch.float32, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "head", "depth", "dtype"), EXPORTED)
def test_experts_are_exported_whole_and_for_any_sizes(
    name: str, head: str, depth: int, dtype: torch.dtype
) -> None:
    model = mw.compile(name, head=head, dtype=dtype, set={"depth": depth})
    module, free = model.programs["forward"], {n: torch.export.Dim(n, max=60) for n in "BT"}
    shapes = tuple(
        {i: free[size] for i, size in enumerate(each.shape) if isinstance(size, str)}
        for each in model.expected("forward")
    )

    def inputs(batch: int, length: int) -> tuple[Tensor, ...]:
        sizes = {"B": batch, "T": length}
        graph = mw.build(model.spec, program="forward")
        return tuple(random_inputs(graph, sizes, dtype=dtype).values())

    exported = torch.export.export(module, inputs(2, 6), dynamic_shapes=shapes, strict=False)
    experts = {n: p for n, p in model.named_parameters() if p.ndim == 3 and "ffn" in n}
    assert len(experts) >= 3
    assert all(exported.state_dict[n].shape == p.shape for n, p in experts.items())
    assert "multiway.grouped_linear" in str(exported.graph)
    for batch, length in ((1, 1), (2, 6), (3, 17)):
        given = inputs(batch, length)
        torch.testing.assert_close(exported.module()(*given), module(*given))


# What routers did


def without_preference(experts: Mappings, **given: Tensor) -> dict[str, Summary]:
    """What routers did, the second of which scores all experts alike."""
    model = model_of(text_model(experts), taps=["routers"])
    with torch.no_grad():
        model.get_parameter("blocks.1.ffn.router.weight").zero_()
    _, taps = model(**given)
    return summary(taps)


def test_what_a_router_without_a_preference_did() -> None:
    padding = torch.arange(7).expand(2, 7) >= torch.tensor([[7], [4]])
    found = without_preference({**TWO, "count": 8}, text=ids(2, 7), text_padding=padding)
    assert list(found) == ["blocks.0.ffn.router", "blocks.1.ffn.router"]
    for each in found.values():
        close(each.load.sum(), torch.ones((), dtype=torch.float64))
        close(each.probability.sum(), torch.ones((), dtype=torch.float64))
        assert each.experts == 2 and each.dropped == 0
    even = found["blocks.1.ffn.router"]
    assert even.entropy == pytest.approx(math.log(8)) and even.z == pytest.approx(math.log(8) ** 2)
    close(even.probability, torch.full((8,), 1 / 8, dtype=torch.float64))
    assert found["blocks.0.ffn.router"].entropy < math.log(8)


def test_the_part_of_choices_that_found_no_place() -> None:
    found = without_preference({**TWO, "capacity": {"slots": 3}}, text=ids(2, 7))
    # All of 7 tokens ask the same two experts, each of which serves 3.
    full = found["blocks.1.ffn.router"]
    assert full.dropped == pytest.approx(4 / 7) and full.experts == pytest.approx(6 / 7)
    assert sorted(full.load.tolist()) == [0, 0, 0.5, 0.5]


# Even use


@pytest.mark.parametrize("rows", ["apart", "together"])
@pytest.mark.parametrize("layers", ["apart", "together"])
def test_the_loss_for_even_use_is_its_formula(rows: str, layers: str) -> None:
    balance = {"weight": 0.5, "rows": rows, "layers": layers}
    experts = {**TWO, "balance_loss": balance, "z_loss": 0.25}
    taps = [f"blocks.{i}.ffn.router.logits" for i in range(2)]
    model = model_of(text_model(experts), head="mlm", taps=taps)
    text, padding = ids(3, 7), torch.arange(7).expand(3, 7) >= torch.tensor([[7], [4], [1]])
    loss, metrics, tapped = model.loss(text=text, text_padding=padding, labels=text)
    there = (~padding).to(loss)
    logits = torch.stack([tapped[tap] for tap in taps])  # [layers, B, T, X]
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    chosen = (p >= p.sort(-1).values[..., -2:-1]).to(loss)
    # Sums over tokens [layers, B, X], then over what is together.
    f, p = (torch.einsum("lbtx,bt->lbx", each, there) for each in (chosen, p))
    n = there.sum(1)[None, :, None].expand(2, -1, 1)
    over = [i for i, how in enumerate((layers, rows)) if how == "together"]
    f, p, n = (each.sum(over, keepdim=True) if over else each for each in (f, p, n))
    close(metrics["balance"], (X * (f / n * p / n).sum(-1)).mean())
    close(metrics["z"], (logits.logsumexp(-1) ** 2 * there).sum() / (2 * there.sum()))
    close(loss, metrics["task"] + 0.5 * metrics["balance"] + 0.25 * metrics["z"])


def test_the_loss_of_even_use_is_the_number_of_experts_of_a_token() -> None:
    loss = registry()["balance_loss"].reference
    given = {"loads": [torch.full((2, X), 9.0)], "tokens": [torch.full((2,), 9.0 * X / 3)]}
    p = torch.rand(2, X, generator=torch.Generator().manual_seed(0)) + 0.1
    p = p / p.sum(-1, keepdim=True) * given["tokens"][0][:, None]
    found = loss(**given, probabilities=[p], rows="apart", layers="apart")
    torch.testing.assert_close(found, torch.tensor(3.0))


BIASED = {**TWO, "score": "sigmoid", "balance_bias": {"rate": 0.02}}


def test_biases_move_towards_even_use_by_their_rate() -> None:
    model, path = model_of(text_model(BIASED), head="mlm"), "blocks.0.ffn.router.balance"
    bias = model.get_parameter(path)
    assert not bias.requires_grad
    before = bias.clone()
    # Over both rows 3, 9, 6 and 6: the mean is 6.
    load = torch.tensor([[1.0, 4, 5, 2], [2, 5, 1, 4]], dtype=torch.float64)
    update_balance(model, {path: load})
    close(bias - before, torch.tensor([0.02, -0.02, 0, 0], dtype=torch.float64))
    with pytest.raises(KeyError):
        update_balance(model, {"blocks.0.ffn.router.weight": load})
    with pytest.raises(KeyError):
        update_balance(model, {"blocks.7.ffn.router.balance": load})


def test_biases_of_a_model_in_bfloat16_keep_small_steps() -> None:
    small = {**BIASED, "balance_bias": {"rate": 0.0005}}
    model = mw.compile(text_model(small), head="mlm", dtype=torch.bfloat16)
    path = "blocks.0.ffn.router.balance"
    bias = model.get_parameter(path)
    assert bias.dtype == torch.float32
    assert model.get_parameter("blocks.0.ffn.router.weight").dtype == torch.bfloat16
    bias.fill_(0.5)
    update_balance(model, {path: torch.tensor([[1.0, 3, 2, 2]])})
    close(bias, torch.tensor([0.5005, 0.4995, 0.5, 0.5]))
    text = ids(2, 9)
    loss, _ = model.loss(text=text, labels=text)
    loss.backward()
    assert loss.isfinite()


NARROW = {
    "half": lambda each: each.half(),
    "bfloat16": lambda each: each.bfloat16(),
    "to": lambda each: each.to(torch.bfloat16),
    "to device": lambda each: each.to("cpu", torch.float16),
    "type": lambda each: each.type(torch.bfloat16),
    "blocks": lambda each: each.blocks.to(torch.bfloat16),
    "from double": lambda each: each.double().to(torch.bfloat16),
    "program": lambda each: each.programs["forward"].to(torch.bfloat16),
    "copy": lambda each: copy.deepcopy(each).to(torch.bfloat16),
}


@pytest.mark.parametrize("how", NARROW)
def test_biases_stay_wide_in_a_model_that_is_narrowed(how: str) -> None:
    model = mw.compile(text_model(BIASED), head="mlm")
    path = "blocks.0.ffn.router.balance"
    model.get_parameter(path).fill_(0.5005)
    narrowed = NARROW[how](model)
    model = narrowed if how == "copy" else model
    for name in model.balance_rates:
        bias = model.get_parameter(name)
        assert bias.dtype == torch.float32 and not bias.requires_grad
    close(model.get_parameter(path), torch.full((4,), 0.5005))
    assert model.get_parameter("blocks.0.ffn.router.weight").dtype in (
        torch.bfloat16,
        torch.float16,
    )
    if how in ("bfloat16", "to", "copy"):
        assert model.loss(text=ids(2, 9), labels=ids(2, 9))[0].isfinite()


def test_biases_follow_to_wider_types_and_other_devices() -> None:
    model = mw.compile(text_model(BIASED), head="mlm", dtype=torch.bfloat16)
    bias = "blocks.0.ffn.router.balance"
    assert model.float().get_parameter(bias).dtype == torch.float32
    assert model.double().get_parameter(bias).dtype == torch.float64
    assert model.to("meta", torch.bfloat16).get_parameter(bias).dtype == torch.float32
    assert model.get_parameter(bias).is_meta
    assert not model.to_empty(device="cpu").get_parameter(bias).is_meta


def test_experts_are_used_more_evenly_after_some_steps() -> None:
    model, text = model_of(text_model(BIASED), head="mlm"), ids(4, 20)
    spread = []
    for _ in range(20):
        _, metrics = model.loss(text=text, labels=text)
        assert set(metrics["load"]) == set(model.balance_rates)
        loads = torch.stack([each.sum(0) for each in metrics["load"].values()])
        assert torch.equal(loads.sum(1), torch.full((2,), 2.0 * 80).to(loads))
        spread.append(float((loads.max(1).values - loads.min(1).values).sum()))
        update_balance(model, metrics["load"])
    assert spread[-1] < 0.5 * spread[0]


def test_noise_is_for_training() -> None:
    noise, text = {"router": {"jitter": 0.3}}, ids(2, 9)
    noisy, plain = (model_of(text_model(TWO | more), head="mlm") for more in (noise, {}))

    def losses(model: Model) -> list[Tensor]:
        return [model.loss(text=text, labels=text)[0].detach() for _ in range(2)]

    first, second = losses(noisy)
    assert not torch.equal(first, second)
    single, other = losses(model_of(text_model({**ONE, **noise}), head="mlm"))
    assert torch.equal(single, other), "experts are to see no noise"
    with torch.no_grad():
        without = [*losses(noisy), *losses(plain)]
    assert all(torch.equal(each, without[0]) for each in without)
    assert torch.equal(noisy(text=text), plain(text=text))


# Costs


@pytest.mark.parametrize(("experts", "used"), [(TWO, 2), (HASH, 1), (CHOICE, 1.5)], ids=str)
def test_a_token_meets_its_part_of_the_experts(experts: Mappings, used: float) -> None:
    graph = mw.build(mw.load(text_model({**experts, "count": 8})).for_head("features"))
    found = costs(graph, {"B": 1, "T": 4})["ffn"]
    one = 2 * 6 * 8 + 2 * 6 + 8 * 6 + 8  # gate, up and down with their biases
    router = 0 if experts is HASH else 8 * 8
    norm = 2 * 8
    assert found.parameters == 2 * (8 * one + router + norm)
    assert found.active == 2 * (used * one + router + norm)


def test_hash_routing_behind_a_mix_is_cut_with_its_ids() -> None:
    """Ids run along the tokens as hiddens do, with no axis of channels."""
    spec = mw.load(
        {
            "multiway": 1,
            "name": "two-texts",
            "dims": {"depth": 1, "width": 4, "vocab": 11},
            "inputs": {
                name: {"vocab": "vocab", "context": 16, "modality": "language"}
                for name in ("note", "text")
            },
            "block": {
                "norm": {"kind": "rms_norm", "eps": 1e-6},
                "attention": {"heads": 1},
                "ffn": {"hidden": 5},
            },
            "wiring": "attnres",
            "output": {"norm": {"experts": {"route": "hash", "count": 3}}},
            "heads": {"task": {"kind": "classification", "pool": ["first of note"], "classes": 2}},
        }
    ).for_head("task")
    graph = mw.build(spec, program="loss")
    assert_equal(spec, "loss", random_inputs(graph, {"B": 2, "T": 3, "T_text": 4}))


def test_the_loss_of_balance_sees_choices_that_are_dropped() -> None:
    """All tokens choose one expert, which serves a quarter of them: that is no even use."""
    gates = torch.zeros(1, 8, 4, dtype=torch.float64)
    wanted = gates.clone()
    wanted[..., 2] = 1
    gates[:, :2, 2] = 1
    logits = 50.0 * wanted
    load, probability, *_, dropped, tokens = registry()["router_statistics"].reference(
        gates, logits, wanted, score="softmax"
    )
    assert load.tolist() == [[0, 0, 8, 0]] and dropped.tolist() == [6]
    loss = registry()["balance_loss"].reference(
        [load], [probability], [tokens], rows="together", layers="apart"
    )
    assert float(loss) == pytest.approx(4)
