"""A compiled model is an ordinary module: calls, hooks, pickles, texts, compilers."""

from __future__ import annotations

import copy
import io
import multiprocessing
import operator
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from members import members
from torch import nn
from torch.utils.checkpoint import checkpoint

import multiway as mw
from multiway.runtime.block import Block
from multiway.runtime.checkpoints.weights import load_weights
from multiway.runtime.measure.times import peak_live_bytes
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError

NAME = "mudd-pythia-test"
TOKENS = torch.arange(10).reshape(2, 5)


def refused(caught: pytest.ExceptionInfo[MultiwayError]) -> str:
    (problem,) = caught.value.problems
    return problem.code


# Calls


@pytest.mark.parametrize(("name", "head"), members())
def test_a_loss_is_a_pair(name: str, head: str) -> None:
    model = mw.compile(name, head=head)
    if "loss" in model.programs:
        loss, metrics = model.loss(**sample(model, "loss"))
        assert loss.shape == () and isinstance(metrics, dict)


def sample(model: Model, program: str) -> dict[str, torch.Tensor]:
    from multiway.runtime.measure.sides import Work, sample_inputs

    return sample_inputs(model, program, Work(batch=2, length=6, train=program == "loss"))


def test_inputs_are_taken_in_order_and_by_name() -> None:
    model = mw.compile(NAME)
    want = model(tokens=TOKENS)
    for found in (model(TOKENS), model.run("forward", TOKENS), model(TOKENS, program="forward")):
        assert torch.equal(found, want)
    loss, _ = model.loss(TOKENS, labels=TOKENS)
    assert torch.equal(loss, model.loss(TOKENS, TOKENS)[0])
    assert torch.equal(loss, model(TOKENS, TOKENS, program="loss")[0])


@pytest.mark.parametrize(
    ("args", "given", "said"),
    [
        ((TOKENS, TOKENS), {}, "'forward' takes 1 inputs, and 2 are given"),
        ((TOKENS,), {"tokens": TOKENS}, "'tokens' is given in order and by name"),
        ((), {"token": TOKENS}, "'token' is not an input of 'forward'"),
        ((TOKENS,), {"program": "forwards"}, "has no program 'forwards'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(args: Any, given: Any, said: str) -> None:
    with pytest.raises(MultiwayError, match=said):
        mw.compile(NAME)(*args, **given)


def test_an_input_cannot_be_called_program() -> None:
    given = {"inputs": {"program": {"modality": "text", "vocab": 5}}}
    with pytest.raises(MultiwayError, match="an input cannot be called 'program'"):
        mw.load({"multiway": 1, "name": "x", "extends": NAME, **given})


def test_parameters_that_a_program_does_not_read_are_named() -> None:
    model = mw.compile("beit3-test", head="retrieval")
    unused = model.unused("encode_image")
    assert "heads.retrieval.scale" in unused and "embed.text.weight" in unused
    image = sample(model, "encode_image")
    model(**image, program="encode_image").sum().backward()
    assert unused == [name for name, p in model.named_parameters() if p.grad is None]
    assert model.unused("loss") == ["embed.vision.mask_token"]
    vqa = mw.compile("beit3-test", head="vqa")  # which reads one token of the last block
    vqa.loss(**sample(vqa, "loss"))[0].backward()
    unused = [name for name, p in vqa.named_parameters() if p.grad is None]
    assert "blocks.1.attention.query.text.weight" in unused and unused == vqa.unused("loss")


# Copies


@pytest.mark.parametrize("made", [False, True], ids=["before-programs", "after-programs"])
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_a_model_pickles(made: bool, mode: Any) -> None:
    model = mw.compile(NAME, mode=mode, taps=["hidden.1"])
    want = model(TOKENS) if made else None
    text, file = pickle.dumps(model), io.BytesIO()
    assert b"GraphModule" not in text
    torch.save(model, file)
    file.seek(0)
    for other in (pickle.loads(text), torch.load(file, weights_only=False), copy.deepcopy(model)):
        found = other(TOKENS)
        want = want or model(TOKENS)
        assert torch.equal(found[0], want[0])
        assert torch.equal(found[1]["hidden.1"], want[1]["hidden.1"])
        assert other.state_dict().keys() == model.state_dict().keys()
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert next(model.parameters()).any()


@pytest.mark.parametrize("head", ["retrieval", "vqa", "captioning"])
def test_every_kind_of_head_pickles(head: str) -> None:
    model = mw.compile("beit3-test", head=head, fuse=False)
    other = pickle.loads(pickle.dumps(model))
    assert (
        other.answer.predict.func is model.answer.predict.func
        if hasattr(model.answer.predict, "func")
        else other.answer == model.answer
    )
    given = sample(model, next(iter(model.programs)))
    for a, b in zip(flat(other(**given)), flat(model(**given)), strict=True):
        assert torch.equal(a, b)


def told(function: Any) -> Any:
    """What a function is, and what is bound to it."""
    kept = getattr(function, "keywords", {})
    return getattr(function, "func", function), getattr(function, "args", ()), kept


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [each for item in items for each in flat(item)]


def test_a_model_goes_to_another_process() -> None:
    model = mw.compile(NAME, mode="inference")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(operator.call, (model, TOKENS))
        torch.testing.assert_close(found, model(TOKENS))


# Hooks


@pytest.mark.parametrize(
    ("name", "head"), [(NAME, "lm"), ("beit3-test", "retrieval"), ("prenorm-test", None)]
)
def test_hooks_of_the_model_and_its_blocks_run_in_every_program(name: str, head: Any) -> None:
    model = mw.compile(name, head=head)
    assert isinstance(model.blocks, nn.ModuleList)
    seen: list[Any] = []
    whole = model.register_forward_hook(lambda *_: seen.append("model"))
    hooks = [
        each.register_forward_hook(lambda _, args, __, i=i: seen.append((i, args[0].shape[0])))
        for i, each in enumerate(model.blocks)
    ]
    for program in model.programs:
        if program in ("prefill", "decode"):
            continue
        model(**sample(model, program), program=program)
        passes = 2 if (head, program) == ("retrieval", "loss") else 1
        want = [(i, 2) for i in range(len(model.blocks))]
        assert sorted(seen[:-1]) == sorted(want * passes) and seen[-1] == "model", program
        seen.clear()
    for each in (whole, *hooks):
        each.remove()
    model(**sample(model, next(iter(model.programs))))
    assert seen == []


def test_a_hook_changes_what_a_block_gives() -> None:
    model = mw.compile("prenorm-test")
    plain = model(TOKENS)
    handle = model.blocks[1].register_forward_hook(lambda _, __, found: found * 0)
    assert not torch.equal(model(TOKENS), plain)
    handle.remove()
    assert torch.equal(model(TOKENS), plain)


def test_a_part_of_a_block_takes_no_hooks() -> None:
    part = mw.compile(NAME).blocks[0].get_submodule("attention.query")
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook"):
        with pytest.raises(MultiwayError, match="taps") as caught:
            getattr(part, f"register_{register}")(print)
        assert refused(caught) == "holds-parameters"
    with pytest.raises(MultiwayError, match="cannot be called"):
        part(TOKENS)


def test_tools_that_look_for_linears_find_none() -> None:
    model = mw.compile("prenorm-test", fuse=False)
    want, before = model(TOKENS), repr(model)
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert repr(found) == before and torch.equal(found(TOKENS), want)


def test_a_modality_may_have_any_name_that_a_part_has_not() -> None:
    spec = {
        "multiway": 1,
        "name": "named",
        "dims": {"depth": 1, "width": 16, "heads": 2, "vocab": 11},
        "inputs": {"a": {"modality": "kind", "vocab": "vocab", "context": 16}},
        "block": {
            "norm": {"kind": "rms_norm", "eps": 1e-6, "experts": "modality"},
            "attention": {"heads": "heads", "mask": "causal"},
            "ffn": {"hidden": 32, "activation": "gelu"},
        },
        "heads": {"lm": {"kind": "causal_lm", "tie": True}},
    }
    model = mw.compile(spec)
    assert "(kind): Embedding(weight [11, 16])" in repr(model)
    assert model(TOKENS % 11).shape == (2, 5, 11)


# What it looks like


def test_a_model_shows_kinds_and_sizes_and_folds_equal_blocks() -> None:
    text = repr(mw.compile("pythia-test", set={"depth": 9}))
    assert "(0-8): 9 x Block(" in text
    assert "(query): Linear(weight [64, 64], bias [64])" in text
    assert "LayerNorm(weight [64], bias [64])" in text and "Embedding(weight [" in text
    assert len(text.splitlines()) < 40, text
    assert repr(mw.compile("beit3-base", head="vqa", device="meta")).count("\n") < 80
    mudd = repr(mw.compile(NAME, set={"depth": 12}))
    assert "(1-11): 11 x Block(" in mudd
    assert "static [4, 2..12]" in mudd and "(output): Linear(weight [8..48, 64])" in mudd


# Compilers


@pytest.mark.slow
def test_a_compiled_inference_program_follows_its_weights() -> None:
    torch.compiler.reset()
    model = mw.compile(NAME, mode="inference")
    whole = torch.compile(model, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(whole(TOKENS), model(TOKENS))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)


@pytest.mark.parametrize(
    ("program", "made"),
    [
        ("loss", False),
        pytest.param("forward", False, marks=pytest.mark.slow),
        pytest.param("forward", True, marks=pytest.mark.slow),
    ],
)
def test_a_model_compiles_as_one_graph(program: str, made: bool) -> None:
    torch.compiler.reset()
    model = mw.compile(NAME)
    given = [TOKENS, TOKENS][: 1 + (program == "loss")]
    if made:
        model(*given, program=program)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, want = whole(*given, program=program), model(*given, program=program)
    for a, b in zip(flat(found), flat(want), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "head", "mode", "strict"),
    [
        ("prenorm-test", "lm", "inference", False),
        *(
            pytest.param(*each, mode, strict, marks=pytest.mark.slow)
            for each in ((NAME, "lm"), ("beit3-test", "vqa"))
            for mode in ("train", "inference")
            for strict in (False, True)
        ),
    ],
)
def test_a_model_is_exported(name: str, head: str, mode: Any, strict: bool) -> None:
    model = mw.compile(name, head=head, mode=mode)
    given = sample(model, "forward")
    exported = torch.export.export(model, (), given, strict=strict)
    torch.testing.assert_close(exported.module()(**given), model(**given))
    assert set(exported.state_dict) <= set(model.state_dict())


# Checkpointing of activations


def gradients(model: Model, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of all parameters that have one, by spec path."""
    torch.manual_seed(3)
    model.loss(**given)[0].backward()
    found = model.state_dict(keep_vars=True)
    return {name: each.grad for name, each in found.items() if each.grad is not None}


def wrapped(model: Model) -> None:
    """As FSDP and its users ask for it, here before a program is made."""
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

    checkpoint_wrapper.apply_activation_checkpointing(
        model, check_fn=lambda module: isinstance(module, Block)
    )


def around_each(model: Model) -> None:
    for block in model.blocks:
        run = block.forward
        block.forward = lambda *values, run=run, **which: checkpoint(
            run, *values, use_reentrant=False, **which
        )


@pytest.mark.parametrize(("name", "head"), members())
def test_blocks_under_torchs_checkpoint_have_the_same_gradients(name: str, head: str) -> None:
    check_checkpoints(name, head, wrapped)


@pytest.mark.parametrize("how", [wrapped, around_each])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "reference"])
@pytest.mark.parametrize(("name", "head"), [(NAME, "lm"), ("beit3-test", "retrieval")])
def test_checkpoints_fit_every_form(name: str, head: str, fuse: bool, how: Any) -> None:
    check_checkpoints(name, head, how, fuse=fuse)


def check_checkpoints(name: str, head: str, how: Any, *, fuse: bool = True) -> None:
    plain, model = (mw.compile(name, head=head, fuse=fuse) for _ in range(2))
    if "loss" not in plain.programs:
        return
    given = sample(plain, "loss")
    want = gradients(plain, given)
    how(model)
    found = gradients(model, given)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[each], want[each]) for each in want)


def test_what_stands_around_blocks_is_in_no_name(tmp_path: Path) -> None:
    plain, model = mw.compile(NAME), mw.compile(NAME, seed=1)
    wrapped(model)
    assert model.unused("loss") == plain.unused("loss") == []
    assert list(model.state_dict()) == list(plain.state_dict())
    mw.save(model, tmp_path / "wrapped.safetensors")
    again = mw.compile(NAME, weights=tmp_path / "wrapped.safetensors")
    assert torch.equal(again(TOKENS), model(TOKENS))
    mw.save(plain, tmp_path / "plain.safetensors")
    load_weights(model, tmp_path / "plain.safetensors")
    assert torch.equal(model(TOKENS), plain(TOKENS))


def peak(model: Model) -> int:
    """The most bytes of a step of training beside parameters and gradients."""
    given = sample(model, "loss")
    gradients(model, given)
    return peak_live_bytes(lambda: gradients(model, given))


@pytest.mark.parametrize("made", [False, True], ids=["before-programs", "after-programs"])
@pytest.mark.parametrize(
    "asked",
    [
        {"gradient_checkpointing_kwargs": None},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"activation_checkpointing_kwargs": {}, "every_n_layers": 1, "offload": False},
    ],
)
def test_checkpointing_that_is_asked_for_later_is_a_plan_with_no_budget(
    asked: dict[str, Any], made: bool
) -> None:
    deep = {"depth": 8}
    plain, model = mw.compile(NAME, set=deep), mw.compile(NAME, set=deep)
    if made:
        model.loss(**sample(model, "loss"))
    model.gradient_checkpointing_enable(**asked)
    assert model.activation_checkpointing_enable == model.gradient_checkpointing_enable
    given = sample(model, "loss")
    want, found = gradients(plain, given), gradients(model, given)
    assert all(torch.equal(found[each], want[each]) for each in want)
    assert peak(model) == peak(mw.compile(NAME, set=deep, memory_budget=0)) < peak(plain) / 2
    assert peak(pickle.loads(pickle.dumps(model))) < peak(plain) / 2


def test_a_budget_of_ones_own_stays() -> None:
    deep, much = {"depth": 8}, 2**30
    model = mw.compile(NAME, set=deep, memory_budget=much)
    model.gradient_checkpointing_enable()
    assert peak(model) == peak(mw.compile(NAME, set=deep))


@pytest.mark.parametrize(
    ("compiled", "asked", "said"),
    [
        ({}, {"offload": True}, "a memory plan has no offload=True"),
        ({}, {"every_n_layers": 2}, "a memory plan has no every_n_layers=2"),
        (
            {},
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "a memory plan has no use_reentrant=True",
        ),
        ({"fuse": False}, {}, "without a plan of what backward keeps"),
        ({"mode": "inference"}, {}, "without a plan of what backward keeps"),
        ({"without": ["plan_memory"]}, {}, "without a plan of what backward keeps"),
    ],
)
def test_checkpointing_that_there_is_not_is_refused(
    compiled: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(MultiwayError, match=said):
        mw.compile(NAME, **compiled).gradient_checkpointing_enable(**asked)
