"""Compares multiway with recorded tensors of the original implementations.

    python tests/parity.py CASE_DIR...

A case is a folder with config.json, weights, inputs, outputs and grads (see the README beside the
recorded cases). For each, a spec is built from config.json, the weights are imported through the
family's rename table, and outputs, decode steps, hidden states and gradients are compared within
the tolerances that the case states. Prints a line a case; exit 1 on a miss, 2 where a case asks for
something that multiway does not have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file

import multiway as mw
from multiway.runtime.checkpoints.layout import held, laid
from multiway.runtime.model import Model, new_cache

sys.path.insert(0, str(Path(__file__).resolve().parent))
from parity_wirings import run_wiring

Tensors = Mapping[str, torch.Tensor]


class Unsupported(Exception):
    """A configuration value that multiway has no counterpart for."""


@dataclass
class Case:
    """A recorded case and what has been compared of it."""

    folder: Path
    checked: int = 0
    worst: float = 0.0  # largest error as a fraction of what is allowed
    misses: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def family(self) -> str:
        """What the case is called; those of wirings have a `connection`."""
        return "wiring" if "connection" in self.config else str(self.data.get("family"))

    def __post_init__(self) -> None:
        self.data = json.loads((self.folder / "config.json").read_text())
        self.config = self.data["config"]
        self.tolerance = self.data["suggested_tolerance"]
        self.inputs = load_file(self.folder / "inputs.safetensors")
        self.outputs = load_file(self.folder / "outputs.safetensors")
        self.grads = load_file(self.folder / "grads.safetensors")

    def require(self, **wanted: Any) -> None:
        """Raises Unsupported unless configuration values are those given (or absent)."""
        for key, value in wanted.items():
            if key in self.config and self.config[key] != value:
                self.unsupported(key)

    def unsupported(self, key: str) -> NoReturn:
        raise Unsupported(key)

    def know(self, keys: str) -> None:
        """Raises Unsupported for a configuration key that nobody has looked at."""
        for key in self.config:
            if key not in keys.split():
                raise Unsupported(key)

    def compare(self, name: str, got: torch.Tensor, *, atol: float | None = None) -> None:
        """Compares an output with the recorded one, if it was recorded."""
        want = self.outputs.get(name)
        if want is None:
            return
        self.seen.add(name)
        if not want.is_floating_point():
            self.note(name, 0.0 if torch.equal(got, want) else float("inf"))
            return
        allowed = (atol or self.tolerance["outputs_atol"]) + (
            0 if atol else self.tolerance["outputs_rtol"]
        ) * want.abs()
        if got.shape != want.shape:
            self.misses.append(f"{name} has shape {list(got.shape)}, recorded {list(want.shape)}")
            return
        self.note(name, float(((got - want).abs() / allowed).max()))

    def note(self, name: str, fraction: float) -> None:
        self.checked += 1
        self.worst = max(self.worst, fraction)
        if not fraction <= 1:
            self.misses.append(f"{name} is off by {fraction:.3g} times what is allowed")

    def compare_loss(self, value: torch.Tensor) -> None:
        self.compare("loss", value.detach(), atol=self.tolerance["loss_atol"])

    def compare_grads(self, model: Model) -> None:
        """Compares every recorded gradient with ours under the foreign names."""
        own = dict(model.named_parameters())
        noise = set(self.data["params_with_rounding_noise_grad"])
        zero = set(self.data["params_with_exactly_zero_grad"])
        floor = self.tolerance["grads_atol_floor"]
        pairs, unknown = mw.rename_table(model.spec).pairs(own)
        self.misses += [f"{name} has no foreign name" for name in unknown]
        read = set()
        for pair in pairs:
            read.add(pair.theirs)
            want = self.grads.get(pair.theirs)
            parts = [own[n].grad for n in pair.ours]
            filled = {
                n: torch.zeros_like(own[n]) if g is None else g
                for n, g in zip(pair.ours, parts, strict=True)
            }
            got = laid(pair, held(pair, filled))
            name = f"grad {pair.theirs}"
            if want is None:
                if pair.theirs in self.data["params_without_grad"]:
                    self.note(name, float(got.abs().max() > 0))
                else:
                    self.misses.append(f"{name} was not recorded")
                continue
            if got.shape != want.shape:
                self.misses.append(f"{name} has shape {list(got.shape)}, not {list(want.shape)}")
                continue
            allowed = floor
            if pair.theirs not in noise | zero:
                allowed += self.tolerance["grads_rel_to_max_entry"] * float(want.abs().max())
            elif pair.theirs in noise:
                allowed = max(floor, 1e-5)
            self.note(name, float((got - want).abs().max()) / allowed)
        self.misses += [f"grad {name} has no parameter" for name in self.grads if name not in read]

    def finish(self) -> None:
        for name in self.outputs:
            if name not in self.seen:
                self.misses.append(f"{name} was recorded but not compared")


# MUDD


_MUDD_KEYS = """
    block_size vocab_size n_layer n_head dim intermediate_size n_local_heads head_dim rope_base
    norm_eps use_gradient_checkpointing is_training use_qk_norm pad_token_id use_parallel_residual
    use_linear_bias rotary_pct bos_token_id eos_token_id tie_word_embeddings use_layer_cache
    stack_hidden dense dynamic_dense sepln dense_type expand_last round64
"""


def mudd_spec(case: Case) -> dict[str, Any]:
    """The spec of a MUDD case: the zoo's family with the numbers and options of the case."""
    c, pythia = case.config, case.data["family"] == "muddpythia"
    case.know(_MUDD_KEYS)
    case.require(tie_word_embeddings=False, stack_hidden=False)
    head = c["head_dim"]
    if c["dim"] % c["n_head"] or head != c["dim"] // c["n_head"]:
        raise Unsupported("head_dim")
    if not 1 <= c["n_local_heads"] <= c["n_head"] or c["n_head"] % c["n_local_heads"]:
        raise Unsupported("n_local_heads")
    base = c.get("intermediate_size") or default_ffn(c["dim"], pythia)
    attention: dict[str, Any] = {
        "kv_heads": c["n_local_heads"],
        "position": {"base": c["rope_base"], "fraction": c["rotary_pct"] if pythia else 1},
        "qk_norm": {"eps": c["norm_eps"]} if c["use_qk_norm"] else None,
    }
    block = {"norm": {"eps": c["norm_eps"]}, "attention": attention}
    if pythia:
        block["order"] = "parallel" if c["use_parallel_residual"] else "sequential"
        block["ffn"] = {"bias": c["use_linear_bias"]}
    return {
        "multiway": 1,
        "extends": "mudd-pythia" if pythia else "muddformer",
        "name": case.folder.name,
        "dims": {
            "depth": c["n_layer"],
            "width": c["dim"],
            "num_heads": c["n_head"],
            "base": base,
            "vocab": c["vocab_size"],
            "context": c["block_size"],
        },
        "block": block,
        "wiring": mudd_wiring(case),
        "output": {"norm": {"eps": c["norm_eps"]}},
    }


def default_ffn(width: int, pythia: bool) -> int:
    """The base width of the feed-forward where a configuration gives none."""
    if pythia:
        return 4 * width
    cut = int(8 * width / 3)
    return cut if cut % 256 == 0 else cut + 256 - cut % 256


def mudd_wiring(case: Case) -> dict[str, Any]:
    c = case.config
    if not c["dense"]:
        case.require(sepln=False)
        return {"use": "residual"}
    case.require(sepln=True, dynamic_dense=True, dense_type="qkvr")
    last = "(4 if last else 1)" if c["expand_last"] else "1"
    hidden = f"ways * sources * {last}"
    if c["round64"]:
        hidden = f"({hidden} // 64 + 1) * 64"
    return {"mix": {"generator": {"hidden": hidden, "norm": {"eps": c["norm_eps"]}}}}


def run_mudd(case: Case) -> None:
    depth, dense = case.config["n_layer"], case.config["dense"]
    taps = [f"hidden.{i}" for i in range(depth + 1)]
    ways = [["q", "k", "v", "r"]] * (depth - 1) + [["r"]]
    if dense:
        taps += [f"dynamic.{i}" for i in range(depth)]
        taps += [f"streams.{i}.{way}" for i in range(depth) for way in ways[i]]
    spec = mudd_spec(case)
    # What is tapped is not fused away, so everything else is compared without taps.
    observed, model = mw.compile(spec, taps=taps), mw.compile(spec)
    for each in (observed, model):
        mw.import_weights(each, case.folder / "weights.safetensors")
    tokens = case.inputs["tokens"]
    with torch.no_grad():
        _, tapped = observed(tokens=tokens)
        case.compare("logits", model(tokens=tokens))
    for i in range(depth + 1):
        case.compare(f"hidden.{i}", tapped[f"hidden.{i}"])
    for i in range(depth if dense else 0):
        dynamic = tapped[f"dynamic.{i}"].unflatten(-1, (len(ways[i]), i + 2))
        case.compare(f"dynamic_dense.{i}", dynamic.permute(2, 0, 1, 3))
        streams = torch.stack([tapped[f"streams.{i}.{way}"] for way in ways[i]])
        case.compare(f"streams.{i}", streams if len(ways[i]) > 1 else streams[0])
    run_mudd_decode(case, model)
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    loss = model.run("loss", tokens=tokens, labels=labels)[0]
    loss.backward()
    case.compare_loss(loss)
    case.compare_grads(model)


@torch.no_grad()
def run_mudd_decode(case: Case, model: Model) -> None:
    """Prefill of the prompt, then greedy steps of one token through the cache."""
    if "decode.prompt_tokens" not in case.inputs:
        return
    prompt = case.inputs["decode.prompt_tokens"]
    steps = case.data["decode"]["num_new_tokens"]
    batch, length = prompt.shape
    cache = new_cache(model, batch=batch, slots=length + steps)
    logits, cache = model.run("prefill", tokens=prompt, cache=cache)
    case.compare("decode.prefill_logits", logits)
    ids, chosen = [prompt], []
    for step in range(steps):
        chosen.append(logits[:, -1])
        new = logits[:, -1].argmax(-1, keepdim=True)
        ids.append(new)
        positions = torch.full((batch, 1), length + step)
        if step + 1 < steps:
            logits, cache = model.run("decode", tokens=new, positions=positions, cache=cache)
    case.compare("decode.logits", torch.stack(chosen, 1))
    case.compare("decode.generated_ids", torch.cat(ids, 1))


# BEiT-3

_BEIT3_OFF = {
    "encoder_normalize_before": True,
    "activation_fn": "gelu",
    "no_scale_embedding": True,
    "layernorm_embedding": False,
    "moe_freq": 0,
    "use_xmoe": False,
    "rel_pos_buckets": 0,
    "max_rel_pos": 0,
    "deepnorm": False,
    "subln": True,
    "multiway": True,
    "share_encoder_input_output_embed": False,
    "no_output_layer": True,
    "xpos_rel_pos": False,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "segment_length": None,
    "dilated_ratio": None,
}
# Keys whose value is used, and keys that change no number here (experts, checkpointing).
_BEIT3_KEYS = (
    " ".join(_BEIT3_OFF)
    + """
    encoder_embed_dim encoder_attention_heads encoder_ffn_embed_dim encoder_layers normalize_output
    max_source_positions layernorm_eps vocab_size img_size patch_size in_chans
    drop_path_rate moe_top1_expert moe_expert_count moe_gating_use_fp32
    moe_eval_capacity_token_fraction moe_second_expert_policy
    moe_normalize_gate_prob_before_dropping bert_init checkpoint_activations fsdp ddp_rank
    xpos_scale_base flash_attention seq_parallel
"""
)


def beit3_spec(case: Case, head: str) -> dict[str, Any]:
    """The spec of a BEiT-3 case: the zoo's family with the numbers of the case."""
    case.know(_BEIT3_KEYS)
    case.require(**_BEIT3_OFF)
    c, eps = case.config, case.config["layernorm_eps"]
    decode = case.data["decode"] or {}
    heads: dict[str, Any] = {head: {"dims": None, "output_norm": c["normalize_output"]}}
    classes = case.data["head"].get("num_classes")
    if classes is not None:
        heads[head]["classes"] = classes
    smoothing = case.data["loss"].get("label_smoothing")
    if smoothing is not None:
        heads[head]["label_smoothing"] = smoothing
    return {
        "multiway": 1,
        "extends": "beit3",
        "name": case.folder.name,
        "dims": {
            "depth": c["encoder_layers"],
            "width": c["encoder_embed_dim"],
            "num_heads": c["encoder_attention_heads"],
            "image": c["img_size"],
            "patch": c["patch_size"],
            "vocab": c["vocab_size"],
            "text_positions": c["max_source_positions"],
            "mask_id": decode.get("mask_id", c["vocab_size"] - 1),
        },
        "inputs": {"image": {"channels": c["in_chans"]}},
        "block": {"norm": {"eps": eps}, "ffn": {"hidden": c["encoder_ffn_embed_dim"]}},
        "output": {"norm": {"eps": eps}},
        "heads": heads,
    }


_HEADS = {
    "beit3_backbone": "features",
    "beit3_imageclassification": "imageclassification",
    "beit3_nlvr2": "nlvr2",
    "beit3_vqav2": "vqa",
    "beit3_captioning": "captioning",
    "beit3_retrieval": "retrieval",
}
_NAMES = {
    "visual_tokens": "image",
    "textual_tokens": "text",
    "text_padding_position": "text_padding",
    "vision_masked_position": "image_masked",
    "padding_mask": "text_padding",
    "text_description": "text",
    "question": "text",
    "text_ids": "text",
    "image": "image",
    "image_a": "image_a",
    "image_b": "image_b",
}


def run_beit3(case: Case) -> None:
    head = _HEADS[case.data["family"]]
    taps = []
    if head == "features":
        taps = [f"hidden.{i}" for i in range(case.config["encoder_layers"] + 1)]
    spec = beit3_spec(case, head)
    if taps:  # what is tapped is not fused away, so everything else is compared without taps
        observed = mw.compile(spec, head=head, taps=taps)
        mw.import_weights(observed, case.folder / "weights.safetensors")
        for call, described in case.data["calls"].items():
            compare_hiddens(case, observed, call, arguments(case, call, described))
    model = mw.compile(spec, head=head)
    mw.import_weights(model, case.folder / "weights.safetensors")
    total = torch.zeros(())
    for call, described in case.data["calls"].items():
        given = arguments(case, call, described)
        total = total + _CALLS[head](case, model, call, given)
    total.backward()
    case.compare_loss(total)
    case.compare_grads(model)
    if head == "captioning" and case.data["decode"]:
        run_caption_decode(case, model)


def arguments(case: Case, call: str, described: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a call under the names of the spec."""
    given = {}
    for argument in described["args"]:
        if argument == "language_masked_pos":
            continue
        if argument not in _NAMES:
            raise Unsupported(argument)
        given[_NAMES[argument]] = case.inputs[f"{call}.{argument}"]
    return given


def features_program(given: dict[str, Any]) -> str:
    names = [name for name in ("image", "text") if name in given]
    return "forward" if len(names) == 2 else f"forward_{names[0]}"


@torch.no_grad()
def compare_hiddens(case: Case, model: Model, call: str, given: dict[str, Any]) -> None:
    _, tapped = model.run(features_program(given), **given)
    for name, value in tapped.items():
        case.compare(f"{call}.{name}", value)


def call_features(case: Case, model: Model, call: str, given: dict[str, Any]) -> torch.Tensor:
    features = model.run(features_program(given), **given)
    case.compare(f"{call}.encoder_out", features.detach())
    probe = case.inputs[f"{call}.probe"]
    return (features * probe).sum() / (features.shape[0] * features.shape[1])


def call_classes(case: Case, model: Model, call: str, given: dict[str, Any]) -> torch.Tensor:
    case.compare(f"{call}.logits", model(**given).detach())
    labels = case.inputs.get(f"{call}.labels", case.inputs.get(f"{call}.label"))
    return model.loss(**given, labels=labels)[0]


def call_captioning(case: Case, model: Model, call: str, given: dict[str, Any]) -> torch.Tensor:
    masked = case.inputs[f"{call}.language_masked_pos"].bool()
    case.compare(f"{call}.logits", model(**given)[masked].detach())
    labels = case.inputs[f"{call}.language_tokens"].where(masked, -100)
    return model.loss(**given, labels=labels)[0]


def call_retrieval(case: Case, model: Model, call: str, given: dict[str, Any]) -> torch.Tensor:
    text = {name: value for name, value in given.items() if name != "image"}
    with torch.no_grad():
        case.compare(f"{call}.vision_cls", model.run("encode_image", image=given["image"]))
        case.compare(f"{call}.language_cls", model.run("encode_text", **text))
    loss, metrics = model.loss(**given)
    case.compare(f"{call}.logits_per_image", metrics["similarity"].detach())
    case.compare(f"{call}.loss", loss.detach(), atol=case.tolerance["loss_atol"])
    return loss


_CALLS: dict[str, Callable[[Case, Model, str, dict[str, Any]], torch.Tensor]] = {
    "features": call_features,
    "imageclassification": call_classes,
    "nlvr2": call_classes,
    "vqa": call_classes,
    "captioning": call_captioning,
    "retrieval": call_retrieval,
}


@torch.no_grad()
def run_caption_decode(case: Case, model: Model) -> None:
    """Steps of (word found last, mask); the mask token's key and value are written over."""
    text = case.inputs["decode.text_ids"]
    steps, batch = text.shape[:2]
    image = case.inputs["decode.image"]
    tokens = model.spec.tokens_of("image")
    assert tokens is not None
    cache = new_cache(model, batch=batch, slots=tokens + steps + 1)
    found, new = [], []
    for step in range(steps):
        if step == 0:
            logits, cache = model.run("prefill", image=image, text=text[0], cache=cache)
        else:
            positions = torch.tensor([[step, step + 1]]).expand(batch, 2)
            logits, cache = model.run("decode", text=text[step], positions=positions, cache=cache)
        found.append(logits)
        new.append(logits[:, 1].argmax(-1))
    case.compare("decode.logits", torch.stack(found))
    case.compare("decode.new_ids", torch.stack(new, 1))


# The command


def run_case(folder: Path) -> Case:
    """Compares one case. Raises Unsupported."""
    case = Case(folder)
    family = case.family
    if family == "wiring":
        run_wiring(case)
    elif family in _HEADS:
        run_beit3(case)
    elif family in ("muddpythia", "muddformer"):
        run_mudd(case)
    else:
        raise Unsupported("family")
    case.finish()
    return case


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    torch.manual_seed(0)
    code = 0
    for argument in arguments:
        try:
            case = run_case(Path(argument))
        except Unsupported as error:
            print(f"{argument}: unsupported {error}")
            code = 2
        except (mw.MultiwayError, OSError, KeyError) as error:
            print(f"{argument}: {type(error).__name__}: {error}")
            code = 2
        else:
            verdict = "ok  " if not case.misses else "MISS"
            worst = f"largest error {case.worst:.2f} of what is allowed"
            print(f"{verdict} {argument}: {case.checked} tensors, {worst}")
            for miss in case.misses:
                print(f"     {miss}")
            code = max(code, 1 if case.misses else 0)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
