"""What single heads compute, written out a second time from the output of the trunk."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from strategies import random_inputs, randomise, sizes_of
from torch.nn import functional as F

import multiway as mw
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.lowering.check import corresponds
from multiway.compiler.lowering.lower import lower
from multiway.runtime.model import Model, new_cache
from multiway.specs.errors import MultiwayError

Mappings = dict[str, Any]
double = torch.float64
SPEC: Mappings = {
    "multiway": 1,
    "name": "two",
    "dims": {"depth": 2, "width": 8, "image": 4},
    "inputs": {
        "image": {"modality": "vision", "size": "image"},
        "text": {"modality": "language", "vocab": 11, "context": 9, "padding": "right"},
    },
    "embed": {"vision": {"patch": {"size": 2}, "cls": True, "mask_token": True}},
    "block": {
        "norm": {"kind": "layer_norm", "eps": 1e-5},
        "attention": {"heads": 2},
        "ffn": {"hidden": 12},
    },
    "output": {"norm": "layer_norm"},
}


def spec_with(head: Mappings, **changes: Any) -> Mappings:
    """The spec with one head, and with `a__b=c` for a change of a.b."""
    spec = copy.deepcopy(SPEC) | {"heads": {"task": head}}
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = spec
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return spec


def model_of(head: Mappings, *, taps: tuple[str, ...] = (), **changes: Any) -> Model:
    model = mw.compile(spec_with(head, **changes), dtype=double, taps=taps)
    randomise(model)
    return model


def inputs(model: Model, program: str, length: int = 3, **sizes: int) -> Mappings:
    graph = mw.build(model.spec, program=program)
    named = dict.fromkeys(sizes_of(graph), length) | {"B": 2, "S": 20} | sizes
    return random_inputs(graph, named)


def param(model: Model, name: str) -> torch.Tensor:
    return model.get_parameter(f"heads.task.{name}")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def error(head: Mappings, **changes: Any) -> str:
    with pytest.raises(MultiwayError) as caught:
        mw.load(spec_with(head, **changes))
    (problem,) = caught.value.problems
    return f"{problem.code}: {problem.message}"


# Language models

CAUSAL = {"block__attention__mask": "causal"}


def test_the_output_matrix_may_be_the_embedding() -> None:
    model = model_of({"kind": "causal_lm", "tie": True, "bias": True}, taps=("output",), **CAUSAL)
    assert [n for n, _ in model.named_parameters() if n.startswith("heads")] == ["heads.task.bias"]
    logits, taps = model(**inputs(model, "forward"))
    table = model.get_parameter("embed.language.weight")
    close(logits, taps["output"] @ table.T + param(model, "bias"))
    logits.sum().backward()
    assert table.grad is not None
    assert table.grad.abs().min() > 0, "every word is in the softmax"


def test_the_loss_is_of_the_next_token() -> None:
    model = model_of({"kind": "causal_lm"}, **CAUSAL)
    given = inputs(model, "loss", length=6)
    loss, metrics = model.loss(**given)
    logits = model(text=given["text"])
    counted = given["labels"] >= 0
    close(loss, F.cross_entropy(logits[counted], given["labels"][counted]))
    assert int(metrics["count"]) == int(counted.sum())


def test_a_token_sees_nothing_behind_it() -> None:
    model = model_of({"kind": "causal_lm"}, **CAUSAL)
    text = inputs(model, "forward", length=6)["text"]
    changed = text.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = model(text=text), model(text=changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amin(dim=(0, 2)).min() > 0


def test_attention_that_sees_the_future_cannot_predict_it() -> None:
    head = {"kind": "causal_lm"}
    assert error(head).startswith("not-causal: ")
    late = [{"where": "layer == 1", "attention": {"mask": "none"}}]
    assert error(head, **CAUSAL, layers=late).startswith("not-causal: ")


def captions(**more: Any) -> Mappings:
    return {"kind": "prefix_lm", "prefix": "image", **more}


def test_the_prefix_sees_itself_only_and_the_text_what_is_before() -> None:
    model = model_of(captions(), taps=("hidden.2",))
    given = inputs(model, "forward", length=4) | {"text_padding": None}
    _, taps = model(**given)
    other = given | {"text": (given["text"] + 1) % 11}
    _, changed = model(**other)
    assert torch.equal(taps["hidden.2"][:, :5], changed["hidden.2"][:, :5])
    last = given["text"].clone()
    last[:, 2] = (last[:, 2] + 1) % 11
    logits = [model(**given | {"text": text})[0] for text in (given["text"], last)]
    assert torch.equal(logits[0][:, :2], logits[1][:, :2])
    assert not torch.equal(logits[0][:, 3], logits[1][:, 3])
    dark = model(**given | {"image": -given["image"]})[0]
    assert (dark - logits[0]).abs().amin(dim=(0, 2)).min() > 0


def test_label_smoothing_is_in_the_loss_of_a_caption() -> None:
    plain, smooth = model_of(captions()), model_of(captions(label_smoothing=0.2))
    given = inputs(plain, "loss", length=4)
    labels = given.pop("labels")
    logits = plain(**given)[labels >= 0]
    target = torch.full_like(logits, 0.2 / 10)
    target.scatter_(1, labels[labels >= 0][:, None], 0.8)
    want = F.kl_div(logits.log_softmax(-1), target, reduction="batchmean")
    close(smooth.loss(**given, labels=labels)[0], want)
    assert not torch.equal(plain.loss(**given, labels=labels)[0], want)


def test_a_mask_token_is_written_over_by_the_next_word() -> None:
    model = model_of(captions(), block__attention__position={"kind": "rotary"})
    mask, words = 9, torch.tensor([[1, 4, 6], [1, 2, 3]])
    given = inputs(model, "prefill")
    cache = new_cache(model, batch=2, slots=10)
    for step in range(3):
        text = torch.stack([words[:, step], torch.full((2,), mask)], 1)
        if step == 0:
            found, cache = model.run("prefill", image=given["image"], text=text, cache=cache)
        else:
            positions = torch.tensor([[step, step + 1]]).expand(2, 2)
            found, cache = model.run("decode", text=text, positions=positions, cache=cache)
        whole = torch.cat([words[:, : step + 1], torch.full((2, 1), mask)], 1)
        close(found[:, 1], model(image=given["image"], text=whole)[:, -1])


def test_a_fused_way_serves_what_is_written_behind_its_prefix() -> None:
    fused = {"route": "modality", "fused": {"when": ["vision", "language"]}}
    model = model_of(captions(), block__ffn__experts=fused)
    reads = {
        program: {
            path
            for record in mw.build(model.spec, program=program)
            for path in record.params.values()
            if ".ffn." in path and path.endswith("up.fused.weight")
        }
        for program in ("forward", "prefill", "decode")
    }
    assert len(reads["forward"]) == 2
    assert reads["forward"] == reads["prefill"] == reads["decode"]


def test_a_prefix_has_no_padding() -> None:
    note = {"modality": "language", "vocab": 11, "context": 9}
    head = {"kind": "prefix_lm", "prefix": "text", "text": "note"}
    assert error(head, inputs__note=note).startswith("padded-prefix: ")
    assert error({"kind": "prefix_lm", "prefix": "text"}) == (
        "unknown-input: prefix and text are one"
    )


# Classification


def classes(**more: Any) -> Mappings:
    return {"kind": "classification", "classes": 3, **more}


def pooled(model: Model, hidden: torch.Tensor, padding: torch.Tensor) -> Mappings:
    image, text = hidden[:, :5], hidden[:, 5:]
    kept = (~padding).to(double)[..., None]
    return {
        "cls of image": image[:, 0],
        "first of image": image[:, 0],
        "mean of image": image[:, 1:].mean(1),
        "first of text": text[:, 0],
        "mean of text": (text * kept).sum(1) / kept.sum(1),
    }


@pytest.mark.parametrize(
    "pool",
    [
        ["cls of image"],
        ["mean of image"],
        ["mean of text"],
        ["first of text", "mean of image", "first of image"],
    ],
    ids=" and ".join,
)
def test_tokens_are_pooled_and_laid_end_to_end(pool: list[str]) -> None:
    model = model_of(classes(pool=pool), taps=("output",))
    given = inputs(model, "forward", length=4)
    logits, taps = model(**given)
    found = pooled(model, taps["output"], given["text_padding"])
    x = torch.cat([found[pick] for pick in pool], -1)
    close(logits, F.linear(x, param(model, "classes.weight"), param(model, "classes.bias")))


def test_pooled_tokens_pass_norm_dense_hidden_and_classes() -> None:
    head = classes(
        pool=["cls of image"],
        norm={"kind": "rms_norm", "eps": 0.1},
        dense="tanh",
        hidden=6,
        hidden_norm="layer_norm",
        activation="silu",
    )
    model = model_of(head, taps=("output",))
    logits, taps = model(**inputs(model, "forward"))
    x = F.rms_norm(taps["output"][:, 0], (8,), param(model, "norm.weight"), 0.1)
    x = F.linear(x, param(model, "dense.weight"), param(model, "dense.bias")).tanh()
    x = F.linear(x, param(model, "hidden.weight"), param(model, "hidden.bias"))
    norm = (param(model, "hidden_norm.weight"), param(model, "hidden_norm.bias"))
    x = F.silu(F.layer_norm(x, (6,), *norm, 1e-5))
    close(logits, F.linear(x, param(model, "classes.weight"), param(model, "classes.bias")))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "bce_times_classes"])
def test_the_losses_of_classes(loss: str) -> None:
    model = model_of(classes(pool=["cls of image"], loss=loss))
    given = inputs(model, "loss")
    labels = given.pop("labels")
    logits = model(**given)
    result = model.loss(**given, labels=labels)
    if loss == "cross_entropy":
        close(result[0], F.cross_entropy(logits, labels))
        return
    want = F.binary_cross_entropy_with_logits(logits, labels)
    close(result[0], want * (3 if loss == "bce_times_classes" else 1))


def test_passes_are_independent_and_laid_end_to_end() -> None:
    pool = ["cls of image", "first of text"]
    passes = [["image_a", "text"], ["image_b", "text"]]
    pair = model_of(classes(pool=pool, passes=passes))
    one = model_of(classes(pool=pool), taps=("output",))
    own = dict(pair.named_parameters())
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if not name.startswith("heads"):
                parameter.copy_(own[name])
    given = inputs(pair, "forward", length=4)
    x = []
    for name in ("image_a", "image_b"):
        each = {"text": given["text"], "text_padding": given["text_padding"]}
        _, taps = one(image=given[name], **each)
        found = pooled(one, taps["output"], given["text_padding"])
        x += [found[pick] for pick in pool]
    weight, bias = param(pair, "classes.weight"), param(pair, "classes.bias")
    close(pair(**given), F.linear(torch.cat(x, -1), weight, bias))


def test_a_pass_reads_an_input_once() -> None:
    head = classes(pool=["cls of image"], passes=[["image", "image_b"], ["image_c", "image_d"]])
    assert error(head) == "duplicate-value: a pass reads two of one input"
    head = classes(pool=["cls of image"], passes=[["image_a"], ["text"]])
    assert error(head) == "unknown-input: all passes must read the same inputs in the same order"


# Contrastive


def towers(**more: Any) -> Mappings:
    return {"kind": "contrastive", "towers": ["image", "text"], **more}


def test_towers_are_encoded_alone_and_matched() -> None:
    model = model_of(towers(project={"width": 5}))
    given = inputs(model, "loss", length=4)
    loss, metrics = model.loss(**given)
    image = model.run("encode_image", image=given["image"])
    text = model.run("encode_text", text=given["text"], text_padding=given["text_padding"])
    for embedding in (image, text):
        close(embedding.norm(dim=-1), torch.ones(2, dtype=double))
    scores = param(model, "scale").exp() * image @ text.T
    close(metrics["similarity"], scores)
    pairs = torch.arange(2)
    close(loss, (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2)


def test_an_embedding_is_the_projected_first_token() -> None:
    model = model_of(towers(project={"width": 5, "bias": True}, normalise="none"))
    image = inputs(model, "encode_image")["image"]
    trunk = model_of({"kind": "features", "reads": ["image"]})
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            parameter.copy_(own[name])
    weight, bias = param(model, "project.image.weight"), param(model, "project.image.bias")
    close(model.run("encode_image", image=image), F.linear(trunk(image=image)[:, 0], weight, bias))


@pytest.mark.parametrize("name", ["embed", "heads", "output", "blocks", "folded", "graph"])
def test_blocks_of_a_tower_do_not_stand_among_parameters(name: str) -> None:
    """Whatever a tower is called: a state dict, and a file, hold parameters only."""
    model = model_of(towers(project={"width": 5}))
    names = list(model.state_dict())
    # One that is called as parameters' modules are, and one that is called as its blocks could be.
    text = json.dumps(mw.build(model.spec, program="loss").to_json())
    for old, new in (("image", name), ("text", f"{name}_1")):
        text = text.replace(f'"{old}.blocks.', f'"{new}.blocks.')
    graph = LayerGraph.from_json(json.loads(text))
    program = lower(graph, model)
    assert corresponds(graph, program)
    assert list(model.state_dict()) == names
    given = inputs(model, "loss", length=4)
    close(program(*given.values())[0], model.loss(**given)[0])


# Masked modelling and features


def test_masked_patches_are_predicted_without_cls() -> None:
    head = {"kind": "masked", "predict": "image", "reads": ["text", "image"], "classes": 4}
    model = model_of(head, taps=("output",))
    given = inputs(model, "loss")
    labels = given.pop("labels")
    logits, taps = model(**given)
    assert logits.shape == (2, 4, 4)
    hidden = taps["output"][:, 3 + 1 :]
    close(logits, F.linear(hidden, param(model, "weight"), param(model, "bias")))
    loss = model.loss(**given, labels=labels)[0]
    close(loss, F.cross_entropy(logits[labels >= 0], labels[labels >= 0]))


def test_a_hidden_patch_is_not_seen() -> None:
    model = model_of({"kind": "features", "reads": ["image"]})
    given = inputs(model, "forward")
    given["image_masked"] = torch.tensor([[True, False, False, False]]).expand(2, 4)
    other = given["image"].clone()
    other[:, :, :2, :2] += 1
    assert torch.equal(model(**given), model(**given | {"image": other}))
    assert not torch.equal(model(**given), model(image=given["image"]))


def test_there_is_a_program_for_every_subset_of_inputs() -> None:
    sound = {"modality": "audio", "features": 3, "context": 9}
    model = model_of({"kind": "features"}, inputs__sound=sound)
    assert list(model.programs) == [
        "forward",
        "forward_image",
        "forward_text",
        "forward_sound",
        "forward_image_text",
        "forward_image_sound",
        "forward_text_sound",
    ]
    given = inputs(model, "forward", length=4, T_sound=6) | {"text_padding": None}
    assert model(**given).shape == (2, 5 + 4 + 6, 8)
    assert model.run("forward_text_sound", text=given["text"], sound=given["sound"]).shape == (
        (2, 10, 8)
    )


def test_two_inputs_of_vectors_may_have_different_lengths() -> None:
    sound = {"modality": "audio", "features": 3, "context": 9}
    both = {"sound": sound, "noise": sound}
    model = model_of({"kind": "features"}, inputs=both, embed={})
    given = {name: torch.randn(2, n, 3, dtype=double) for name, n in (("sound", 4), ("noise", 2))}
    assert model(**given).shape == (2, 6, 8)


def test_padding_before_another_input_is_not_seen_by_causal_blocks() -> None:
    inputs_ = {name: SPEC["inputs"][name] for name in ("text", "image")}
    model = model_of({"kind": "features"}, inputs=inputs_, **CAUSAL)
    image, text = inputs(model, "forward")["image"][:1], torch.tensor([[3, 4, 5, 6]])
    padding = torch.tensor([[False, False, True, True]])
    padded = model(text=text, text_padding=padding, image=image)
    alone = model(text=text[:, :2], image=image)
    close(padded[:, 4:], alone[:, 2:])
    close(padded[:, :2], alone[:, :2])
