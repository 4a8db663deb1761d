"""Recorded cases of wirings: one pre-norm body, and what every sublayer reads and how it writes.

The part of tests/parity.py for cases with a `connection`. The body is the zoo's family `prenorm`,
whose weights.yaml gives the names of the original's parameters.
"""

from __future__ import annotations

import fnmatch
import json
import math
from typing import TYPE_CHECKING, Any

import torch

import multiway as mw
from multiway.runtime.checkpoints.layout import held, laid

if TYPE_CHECKING:
    from parity import Case

    from multiway.runtime.model import Model

_KEYS = """
    vocab_size n_layer n_head d_model mlp_ratio max_seq_len rope_theta tie_embeddings connection
    connection_kwargs
"""
_OPTIONS = {
    "prenorm": "",
    "postnorm": "",
    "hc": "n dynamic",
    "frac": "m dynamic",
    "mhc": "n sinkhorn_iters alpha_init res_bias_diag phi_std",
    "denseformer": "dilation",
    "muddformer": "dynamic qkv prepost_norm",
    "laurel": "variant rank",
    "attnres": "heads block_size",
    "mhar": "heads block_size",
    "dar": "heads block gate",
}
HIDDEN_QKV_FALSE = "(4 * sources // 64 + 1) * 64"


def wiring_of(name: str, options: dict[str, Any]) -> Any:
    """The wiring of a spec for a registry key and its options; defaults where one is left out."""
    return globals()[f"_{name}"](**options)


def _prenorm() -> Any:
    return {"use": "residual"}


def _postnorm() -> Any:
    return {"use": "post_norm"}


def _hc(n: int = 4, dynamic: bool = True) -> Any:
    weights = {} if dynamic else {"weights": {"dynamic": False}}
    return {"use": "hc", "lanes": {"count": n, **weights}}


def _frac(m: int = 2, dynamic: bool = True) -> Any:
    weights = {} if dynamic else {"weights": {"dynamic": False}}
    return {"use": "frac", "lanes": {"count": m, **weights}}


def _mhc(
    n: int = 4,
    sinkhorn_iters: int = 20,
    alpha_init: float = 0.01,
    res_bias_diag: float = 0.0,
    phi_std: float = 0.02,
) -> Any:
    sinkhorn = {"iterations": sinkhorn_iters, "diagonal": res_bias_diag}
    init = {"kind": "normal", "std": phi_std} if phi_std else "zeros"
    weights = {"sinkhorn": sinkhorn, "scale": alpha_init, "init": init}
    return {"use": "mhc", "lanes": {"count": n, "weights": weights}}


def _denseformer(dilation: int = 1) -> Any:
    return {"use": "denseformer", "mix": {"dilation": dilation}}


def _muddformer(dynamic: bool = True, qkv: bool = True, prepost_norm: bool = False) -> Any:
    mix: dict[str, Any] = {"first_block": "three_norms", "generator": {}}
    if prepost_norm:
        mix["generator"] = {"norm": {"weight": False}}
    if not qkv:
        mix |= {"streams": ["r"], "first_block": "one_norm"}
        mix["generator"] = {**mix["generator"], "hidden": HIDDEN_QKV_FALSE}
    if not dynamic:
        mix["generator"] = False
    return {"use": "mudd_prepost" if prepost_norm else "mudd", "mix": mix}


def _laurel(variant: str = "rw_lr", rank: int = 16) -> Any:
    low_rank = {"rank": rank} if "lr" in variant else None
    return {"use": "laurel", "residual": {"balance": "rw" in variant, "low_rank": low_rank}}


def _attnres(heads: int = 1, block_size: int = 0) -> Any:
    mix = {"router": {"groups": heads}, "group": block_size or 1}
    return {"use": "attnres", "mix": mix}


def _mhar(heads: int = 4, block_size: int = 0) -> Any:
    return {**_attnres(heads, block_size), "use": "mhar"}


def _dar(heads: int = 1, block: bool = False, gate: str = "none") -> Any:
    mix: dict[str, Any] = {"router": {"groups": heads}, "gate": gate == "zero"}
    if block:
        mix |= {"group": 2, "partial": False}
    return {"use": "dar", "mix": mix}


def wiring_spec(case: Case) -> dict[str, Any]:
    """The spec of a case: the zoo's family with its numbers, and the wiring with its options."""
    c = case.config
    case.know(_KEYS)
    name, options = c["connection"], c.get("connection_kwargs") or {}
    if name not in _OPTIONS:
        case.unsupported("connection")
    for option in options:
        if option not in _OPTIONS[name].split():
            case.unsupported(option)
    if name == "laurel" and options.get("variant", "rw_lr") not in ("rw", "lr", "rw_lr"):
        case.unsupported("variant")
    if name == "dar" and options.get("gate", "none") not in ("none", "zero"):
        case.unsupported("gate")
    tie = c.get("tie_embeddings", True)
    return {
        "multiway": 1,
        "extends": "prenorm",
        "name": "recorded",
        "dims": {
            "depth": c["n_layer"],
            "width": c["d_model"],
            "num_heads": c["n_head"],
            "ratio": c.get("mlp_ratio", 8 / 3),
            "rotary_base": c.get("rope_theta", 10000.0),
            "vocab": c["vocab_size"],
            "context": c.get("max_seq_len", 2048),
        },
        "wiring": wiring_of(name, options),
        "heads": {"lm": {"tie": tie}},
    }


# Comparing


def run_wiring(case: Case) -> None:
    """Outputs and gradients with and without fusing, intermediate values by taps."""
    spec, tokens = wiring_spec(case), case.inputs["tokens"]
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    for fuse in (False, True):
        model = mw.compile(spec, fuse=fuse)
        mw.import_weights(model, case.folder / "weights.safetensors")
        with torch.no_grad():
            case.compare("logits", model(tokens=tokens))
        loss = model.run("loss", tokens=tokens, labels=labels)[0]
        loss.backward()
        case.compare_loss(loss)
        case.compare_grads(model)
    compare_initial(case, spec)
    sources = {name: Tapped(case, name) for name in case.outputs if name not in case.seen}
    taps = sorted({tap for each in sources.values() for tap in each.taps})
    if not taps:
        return
    observed = mw.compile(spec, fuse=False, taps=taps)
    mw.import_weights(observed, case.folder / "weights.safetensors")
    with torch.no_grad():
        _, tapped = observed(tokens=tokens)
    for name, each in sources.items():
        if each.taps:
            case.compare(name, each.make([tapped[tap] for tap in each.taps]))


def compare_initial(case: Case, spec: dict[str, Any]) -> None:
    """Compares a fresh model with init.json: constants to the bit, patterns to 1e-7, draws
    by their mean and spread over three models."""
    path = case.folder / "init.json"
    if not path.exists():
        return
    data = json.loads(path.read_text())
    rules = {**data["body_parameters"], **data["wiring_parameters"]}
    fresh = [foreign(mw.compile(spec, fuse=False, seed=seed)) for seed in range(3)]
    for name in fresh[0]:
        found = [rule for pattern, rule in rules.items() if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            case.misses.append(f"{name} has no recorded start")
            continue
        value = torch.stack([tensors[name] for tensors in fresh])
        if list(value.shape[1:]) != found[-1]["shape"]:
            case.misses.append(f"{name} starts with shape {list(value.shape[1:])}")
            continue
        off = far(value, found[-1])
        case.note(f"start of {name}", off if off > 1 else 0.0)


def far(value: torch.Tensor, recorded: dict[str, Any]) -> float:
    """How far initial values are from a rule, as a fraction of what is allowed."""
    rule, pattern = recorded["rule"], recorded.get("value_here")
    if rule["kind"] == "constant":
        return 0.0 if bool((value == rule["value"]).all()) else math.inf
    if rule["kind"] == "normal":
        count, std = value.numel(), rule["std"]
        mean = float(value.mean() - rule["mean"]) / (5 * std / count**0.5)
        spread = float(value.std() / std - 1) / (5 / (2 * count) ** 0.5)
        return max(abs(mean), abs(spread))
    if pattern is not None:
        return float((value - torch.tensor(pattern)).abs().max()) / 1e-7
    return 0.0


def foreign(model: Model, *, grads: bool = False) -> dict[str, torch.Tensor]:
    """The parameters of a model, or their gradients, under foreign names."""
    own = {name: p.grad if grads else p.detach() for name, p in model.named_parameters()}
    pairs, _ = mw.rename_table(model.spec).pairs(own)
    return {pair.theirs: laid(pair, held(pair, own)) for pair in pairs}


class Tapped:
    """Which values of ours make up a recorded one, and how."""

    def __init__(self, case: Case, name: str) -> None:
        self.kind, _, number = name.partition(".")
        self.number = int(number or 0)
        self.options = case.config.get("connection_kwargs") or {}
        self.wiring, self.depth = case.config["connection"], case.config["n_layer"]
        self.rank = case.outputs[name].dim()
        last = self.number == self.depth - 1
        qkv = self.options.get("qkv", True)
        self.ways = ["r"] if last or not qkv else ["q", "k", "v", "r"]
        found = getattr(self, f"_{self.kind}", None)
        self.taps: list[str] = (
            found() if found is not None and (number or not _counts(name)) else []
        )

    def make(self, values: list[torch.Tensor]) -> torch.Tensor:
        if self.kind in ("pre", "post", "head", "beta"):
            return values[0][..., 0]
        if self.kind == "alpha":
            if self.wiring in ("hc", "frac"):
                return torch.cat(values, -1)
            return values[0].permute(3, 0, 1, 2)
        if self.kind in ("streams", "mix"):
            return torch.stack(values)
        if self.kind == "read" and self.rank == 4:
            return torch.stack(values if len(values) > 1 else values * 3)
        return values[0]

    # Taps, by what a value is called in the recorded cases

    def _x0(self) -> list[str]:
        return ["hidden.0"]

    def _wired(self) -> list[str]:
        return ["wired"]

    def _read(self) -> list[str]:
        split = self.rank == 4 and self.number > 0
        ends = [".q", ".k", ".v"] if split else [""]
        return [f"reads.{self.number}{end}" for end in ends]

    def _out(self) -> list[str]:
        return [f"outputs.{self.number}"]

    def _state(self) -> list[str]:
        if self.wiring in ("hc", "frac", "mhc"):
            return [f"lanes.{self.number}"]
        return ["wired" if self.number == 2 * self.depth else f"reads.{self.number}"]

    def _hidden(self) -> list[str]:
        return [f"hidden.{self.number}"]

    def _mixed(self) -> list[str]:
        return [f"streams.{self.number}.r"]

    def _streams(self) -> list[str]:
        return [f"streams.{self.number}.{way}" for way in self.ways]

    def _weights(self) -> list[str]:
        return [f"{self._block('mix')}.weights"]

    def _source(self) -> list[str]:
        return [f"history.{self.number}.norm"]

    def _mix(self) -> list[str]:
        path = f"{self._block('mix')}.sum"
        return [path] if len(self.ways) == 1 else [f"{path}:{i}" for i in range(len(self.ways))]

    def _alpha(self) -> list[str]:
        if self.wiring in ("hc", "frac"):
            return [f"{self._site()}.lanes.{kind}.weights" for kind in ("read", "mix")]
        return [f"weights.{self.number}"]

    def _beta(self) -> list[str]:
        return [f"{self._site()}.lanes.write.weights"]

    def _pre(self) -> list[str]:
        return [f"{self._site()}.lanes.read.weights"]

    def _post(self) -> list[str]:
        return self._beta()

    def _res(self) -> list[str]:
        return [f"{self._site()}.lanes.mix.weights"]

    def _head(self) -> list[str]:
        return ["output.lanes.read.weights"]

    def _site(self) -> str:
        part = "ffn" if self.number % 2 else "attention"
        return f"blocks.{self.number // 2}.{part}"

    def _block(self, name: str) -> str:
        """What stands behind block `number`: the mix of the next one, or of the output."""
        last = self.number == self.depth - 1
        return f"output.{name}" if last else f"blocks.{self.number + 1}.{name}"


def _counts(name: str) -> bool:
    return name not in ("x0", "wired", "head")
