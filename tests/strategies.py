"""Random whole specs, as the mappings that `multiway.load` takes, and random inputs for programs.

A head kind without an entry in HEADS comes in the specs of specs/examples that show it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from routing_strategies import by_router
from routing_strategies import experts as routings
from wiring_strategies import ACTIVATIONS, EPS, KIND, sometimes, wirings

import multiway as mw
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.graph.types import Sym, Tensor, number
from multiway.compiler.heads import kinds as head_kinds
from multiway.runtime.model import Model

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mappings = dict[str, Any]

EXAMPLES = Path(__file__).parents[1] / "specs" / "examples"
VOCAB = 11
CONTEXT = 16
WHERE = ["layer == 0", "layer > 0", "layer >= depth - 1", "layer % 2 == 1", "layer < depth // 2"]
# Inputs that may be drawn: name, modality, form. The second three share a modality with the first.
INPUTS = {
    "text": ("language", "tokens"),
    "image": ("vision", "image"),
    "sound": ("audio", "features"),
    "note": ("language", "tokens"),
    "picture": ("vision", "image"),
    "noise": ("audio", "features"),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What later parts of a spec must know of earlier ones."""

    inputs: Mapping[str, Mappings]
    embed: Mapping[str, Mappings]
    causal: bool
    head_width: int
    heads: int

    @property
    def names(self) -> list[str]:
        return list(self.inputs)

    @property
    def modalities(self) -> list[str]:
        return list(dict.fromkeys(INPUTS[name][0] for name in self.inputs))

    def of_form(self, form: str) -> list[str]:
        return [name for name in self.inputs if INPUTS[name][1] == form]

    def has_cls(self, name: str) -> bool:
        return bool(self.embed.get(INPUTS[name][0], {}).get("cls"))


def merged(*parts: Mapping[str, Any]) -> Mappings:
    return {name: value for part in parts for name, value in part.items()}


@st.composite
def specs(draw: Draw, kinds: Sequence[str] = ()) -> Mappings:
    """A valid spec with one or two heads. `kinds`: the head kinds to choose from, default all."""
    choices = st.sampled_from(sorted(kinds or head_kinds().classes))
    chosen = draw(st.lists(choices, min_size=1, max_size=2, unique=True))
    if shown := sorted({*chosen} - {*HEADS}):
        return draw(st.sampled_from(examples_of(shown[0])))
    inputs = draw(input_lists(chosen))
    embed = {
        modality: entry
        for modality in dict.fromkeys(INPUTS[name][0] for name in inputs)
        if (entry := draw(EMBED[modality]))
    }
    if "masked" in chosen and "vision" in embed:
        embed["vision"]["mask_token"] = True
    facts = Facts(
        inputs=inputs,
        embed=embed,
        causal="causal_lm" in chosen or draw(st.booleans()),
        head_width=draw(st.sampled_from([2, 4, 6])),
        heads=draw(st.sampled_from([1, 2, 4])),
    )
    width = facts.heads * facts.head_width
    attention = draw(attentions(facts))
    if draw(st.booleans()):
        width, attention["head_width"] = draw(st.sampled_from([6, 8, 10])), facts.head_width
    depth = draw(st.integers(1, 4))
    layers = draw(st.lists(overrides(facts), max_size=2))
    alike = not any("kv_heads" in each.get("attention", {}) for each in layers)
    spec = {
        "multiway": 1,
        "name": "drawn",
        "dims": {"depth": depth, "width": width, "image": 4, "vocab": VOCAB},
        "inputs": inputs,
        "embed": embed,
        "block": {
            "norm": merged(draw(norms(facts)), {"kind": draw(KIND), "eps": draw(EPS)}),
            "attention": attention,
            "ffn": draw(feed_forwards(facts)),
            "order": draw(st.sampled_from(["sequential", "parallel"])),
        },
        "layers": layers,
        "wiring": draw(wirings(width=width, depth=depth, values=alike)),
        "output": draw(sometimes(norm=norms(facts, where=["depth > 1"]))),
        "heads": {f"task{i}": draw(HEADS[kind](facts)) for i, kind in enumerate(chosen)},
        "init": draw(INIT),
    }
    return {name: value for name, value in spec.items() if value not in ({}, [])}


# Inputs and embeddings


@functools.cache
def examples_of(kind: str) -> list[Mappings]:
    """The specs of specs/examples with a kind of head, and without heads of other kinds."""
    found = []
    for path in sorted(EXAMPLES.glob("*.yaml")):
        spec = mw.load(path)
        plain = {"multiway": 1, **spec.tree.plain()}
        heads = {name: head for name, head in plain["heads"].items() if head["kind"] == kind}
        if heads:
            found.append({**plain, "heads": heads})
    assert found, f"no spec of specs/examples shows the head kind {kind!r}"
    return found


@st.composite
def input_lists(draw: Draw, kinds: Sequence[str]) -> dict[str, Mappings]:
    """Inputs of one to three modalities in any order, with what the head kinds read."""
    several = {"prefix_lm", "contrastive"} & set(kinds)
    names = draw(
        st.lists(
            st.sampled_from(list(INPUTS)), min_size=2 if several else 1, max_size=3, unique=True
        )
    )
    if {"causal_lm", "prefix_lm"} & set(kinds) and not {"text", "note"} & set(names):
        names.insert(draw(st.integers(0, len(names))), "text")
    found = {name: draw(INPUT_FORMS[INPUTS[name][1]]) for name in names}
    if "prefix_lm" in kinds:
        # A prefix is seen as a whole, so it has no padding: at least one input beside the text.
        kept = draw(st.sampled_from([name for name in names if INPUTS[name][1] == "tokens"]))
        for name in set(names) - {kept}:
            found[name].pop("padding", None)
    return {name: each | {"modality": INPUTS[name][0]} for name, each in found.items()}


PADDING = sometimes(padding=st.sampled_from(["none", "right"]))
INPUT_FORMS = {
    "tokens": PADDING.map(lambda more: {"vocab": "vocab", "context": CONTEXT} | more),
    "image": st.just({"size": "image", "channels": 2}),
    "features": PADDING.map(lambda more: {"features": 3, "context": CONTEXT} | more),
}
LEARNED = st.builds(
    lambda offset, spare: (
        {"kind": "learned", "offset": offset}
        | ({} if spare is None else {"rows": CONTEXT + offset + spare})
    ),
    offset=st.integers(0, 2),
    spare=st.sampled_from([None, 0, 3]),
)
EMBED = {
    "language": sometimes(position=LEARNED),
    "audio": sometimes(position=LEARNED, bias=st.booleans()),
    "vision": st.builds(
        merged,
        st.fixed_dictionaries(
            {"patch": st.fixed_dictionaries({"size": st.just(2), "bias": st.booleans()})}
        ),
        sometimes(cls=st.booleans(), mask_token=st.booleans(), position=LEARNED),
    ),
}


# Blocks

PLAIN_NORM = sometimes(kind=KIND, eps=EPS, weight=st.booleans(), bias=st.booleans())
QK_NORM = sometimes(kind=KIND, eps=EPS, over=st.sampled_from(["head", "width"]))


def experts(
    facts: Facts, *, where: Sequence[str] = WHERE, shared: bool = False
) -> st.SearchStrategy[Mappings]:
    """A routing; where there are several modalities, also with a way for all of them."""
    ids = facts.of_form("tokens") == facts.names
    return routings(modalities=facts.modalities, ids=ids, where=where, shared=shared)


def norms(facts: Facts, *, where: Sequence[str] = WHERE) -> st.SearchStrategy[Mappings]:
    def fitting(norm: Mappings, more: Mappings) -> Mappings:
        weightless = norm.get("weight") is False and by_router(more.get("experts"))
        return norm if weightless else norm | more

    return st.builds(fitting, PLAIN_NORM, sometimes(experts=experts(facts, where=where)))


@st.composite
def attentions(draw: Draw, facts: Facts) -> Mappings:
    heads = facts.heads
    position = st.builds(
        lambda channels, more: {"kind": "rotary", "fraction": channels / facts.head_width} | more,
        st.sampled_from(range(2, facts.head_width + 1, 2)),
        sometimes(base=st.sampled_from([100, 10000]), pairs=st.sampled_from(["half", "adjacent"])),
    )
    more = sometimes(
        kv_heads=st.sampled_from([k for k in (1, 2, 4) if heads % k == 0]),
        bias=st.booleans(),
        qk_norm=QK_NORM | st.just(True),
        position=position,
        sub_norm=PLAIN_NORM | st.just(True),
        norm=norms(facts),
        experts=experts(facts),
    )
    return {"heads": heads, "mask": "causal" if facts.causal else "none"} | draw(more)


def feed_forwards(facts: Facts) -> st.SearchStrategy[Mappings]:
    hidden = st.sampled_from(
        [5, "2 * width", "width + 2 * layer", "round_up(width * (layer + 1), 4)"]
    )
    more = sometimes(
        activation=st.sampled_from(ACTIVATIONS),
        gate=st.booleans(),
        bias=st.booleans(),
        sub_norm=PLAIN_NORM | st.just(True),
        norm=norms(facts),
        experts=experts(facts, shared=True),
    )
    return st.builds(merged, st.builds(lambda h: {"hidden": h}, hidden), more)


@st.composite
def overrides(draw: Draw, facts: Facts) -> Mappings:
    """Changes for some layers."""
    masks = {} if facts.causal else {"mask": st.sampled_from(["none", "causal"])}
    attention = sometimes(
        bias=st.booleans(),
        kv_heads=st.just(1),
        qk_norm=QK_NORM | st.none(),
        position=st.fixed_dictionaries({"kind": st.just("rotary"), "base": st.just(50)})
        | st.none(),
        experts=experts(facts) | st.none(),
        **masks,
    )
    norm = st.builds(lambda kind, eps: {"kind": kind, "eps": eps}, KIND, EPS)
    ffn = sometimes(
        hidden=st.sampled_from([3, "width"]),
        gate=st.booleans(),
        activation=st.sampled_from(ACTIVATIONS),
        sub_norm=st.just("rms_norm") | st.none(),
        experts=experts(facts, shared=True) | st.none(),
    )
    order = st.sampled_from(["sequential", "parallel"])
    change = draw(sometimes(attention=attention, norm=norm, ffn=ffn, order=order))
    return {"where": draw(st.sampled_from(WHERE)), **change}


INITIAL = st.sampled_from(
    [
        "zeros",
        "ones",
        {"kind": "normal", "std": "1 / sqrt(fan_in)"},
        {"kind": "constant", "value": 2},
    ]
)
INIT = st.dictionaries(
    st.sampled_from(["*", "*.weight", "blocks.*", "blocks.0.*.weight", "*.query.*"]),
    INITIAL,
    max_size=2,
)


# Heads


def common(facts: Facts) -> st.SearchStrategy[Mappings]:
    """What every head may say."""
    dims = {"image": st.just(6)} if facts.of_form("image") else {}
    return sometimes(output_norm=st.booleans(), dims=sometimes(**dims) if dims else st.just({}))


def subsets(names: Sequence[str], *, least: int = 1) -> st.SearchStrategy[list[str]]:
    """Some of the names, in any order."""
    return st.permutations(list(names)).flatmap(
        lambda order: st.integers(least, len(order)).map(lambda count: order[:count])
    )


@st.composite
def causal_lms(draw: Draw, facts: Facts) -> Mappings:
    text = sometimes(text=st.sampled_from(facts.of_form("tokens")))
    more = sometimes(tie=st.booleans(), bias=st.booleans())
    return merged({"kind": "causal_lm"}, draw(text), draw(more), draw(common(facts)))


@st.composite
def prefix_lms(draw: Draw, facts: Facts) -> Mappings:
    prefixes = [n for n, each in facts.inputs.items() if each.get("padding") != "right"]
    prefix = draw(st.sampled_from([n for n in prefixes if facts.of_form("tokens") != [n]]))
    text = draw(st.sampled_from([name for name in facts.of_form("tokens") if name != prefix]))
    more = sometimes(bias=st.booleans(), label_smoothing=st.sampled_from([0.0, 0.1]))
    found = {"kind": "prefix_lm", "prefix": prefix, "text": text}
    return merged(found, draw(more), draw(common(facts)))


@st.composite
def contrastives(draw: Draw, facts: Facts) -> Mappings:
    project = st.builds(merged, st.just({"width": 3}), sometimes(bias=st.booleans()))
    more = sometimes(
        project=project,
        normalise=st.sampled_from(["l2", "none"]),
        temperature=st.sampled_from([0.07, 1.0]),
    )
    towers = draw(st.permutations(facts.names))[:2]
    return merged({"kind": "contrastive", "towers": towers}, draw(more), draw(common(facts)))


@st.composite
def features(draw: Draw, facts: Facts) -> Mappings:
    more = sometimes(reads=subsets(facts.names))
    return merged({"kind": "features"}, draw(more), draw(common(facts)))


@st.composite
def classifications(draw: Draw, facts: Facts) -> Mappings:
    reads = draw(subsets(facts.names))
    picks = [f"{what} of {name}" for name in reads for what in ("first", "mean")]
    picks += [f"cls of {name}" for name in reads if facts.has_cls(name)]
    found: Mappings = {
        "kind": "classification",
        "pool": draw(st.lists(st.sampled_from(picks), min_size=1, max_size=2)),
        "classes": draw(st.integers(2, 4)),
        "loss": draw(st.sampled_from(["cross_entropy", "bce", "bce_times_classes"])),
    }
    if draw(st.booleans()):
        # Several passes: an input has one program input for all of them, or one for each.
        shared = draw(st.lists(st.sampled_from(reads), unique=True))
        found["passes"] = [
            [name if name in shared else f"{name}_{suffix}" for name in reads]
            for suffix in "abc"[: draw(st.integers(1, 3))]
        ]
    elif reads != facts.names or draw(st.booleans()):
        found["reads"] = reads
    hidden = st.builds(
        merged,
        st.sampled_from([{"hidden": 3}, {"hidden": "2 * width"}]),
        sometimes(hidden_norm=PLAIN_NORM, activation=st.sampled_from(ACTIVATIONS)),
    )
    more = sometimes(norm=PLAIN_NORM, dense=st.sampled_from(ACTIVATIONS), bias=st.booleans())
    return merged(found, draw(hidden | st.just({})), draw(more), draw(common(facts)))


@st.composite
def masked(draw: Draw, facts: Facts) -> Mappings:
    able = [
        name
        for name in facts.names
        if name not in facts.of_form("image") or facts.embed[INPUTS[name][0]].get("mask_token")
    ]
    predict = draw(st.sampled_from(able))
    reads = draw(subsets(facts.names, least=0))
    if reads and predict not in reads:
        reads.append(predict)
    found = {"kind": "masked", "predict": predict, "classes": draw(st.integers(2, 4))}
    found |= {"reads": reads} if reads else {}
    return merged(found, draw(sometimes(bias=st.booleans())), draw(common(facts)))


HEADS: dict[str, Callable[[Facts], st.SearchStrategy[Mappings]]] = {
    "causal_lm": causal_lms,
    "classification": classifications,
    "contrastive": contrastives,
    "features": features,
    "masked": masked,
    "prefix_lm": prefix_lms,
}


# Inputs for programs


def sizes_of(graph: LayerGraph) -> list[str]:
    """The named sizes of a program's inputs."""
    dims = [
        dim
        for record in graph.inputs()
        for kind in record.outputs
        if isinstance(kind, Tensor)
        for dim in kind.shape
        if isinstance(dim, Sym)
    ]
    return list(dict.fromkeys(name for dim in dims for name, _ in dim.terms))


def random_inputs(
    graph: LayerGraph,
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    vocab: int = VOCAB,
) -> dict[str, Any]:
    """Inputs by name for a program, of the given named sizes; labels are class 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for record in graph.inputs():
        name = record.path.removeprefix("inputs.")
        values = [
            _random(name, kind, sizes, generator, dtype, vocab)
            for kind in record.outputs
            if isinstance(kind, Tensor)
        ]
        found[name] = values if record.attrs["list"] else values[0]
    return found


def _random(
    name: str,
    kind: Tensor,
    sizes: Mapping[str, int],
    generator: torch.Generator,
    dtype: torch.dtype,
    vocab: int,
) -> torch.Tensor:
    shape = [number(dim, sizes) for dim in kind.shape]
    if kind.dtype == "float":
        values = torch.rand(shape, generator=generator, dtype=dtype)
        return values if name == "labels" else 2 * values - 1
    if kind.dtype == "bool":
        flags = torch.rand(shape, generator=generator) < 0.5
        return right_padded(flags) if name.endswith("_padding") else flags
    if name == "labels":
        labels = torch.randint(0, 2, shape, generator=generator)
        if len(shape) > 1:
            labels[:, 1::2] = -100
        return labels
    if name == "positions":
        return torch.arange(shape[1]).expand(shape)
    if name == "cache":  # the slot of position 0
        return torch.zeros(shape, dtype=torch.int64)
    return torch.randint(0, vocab, shape, generator=generator)


def right_padded(flags: torch.Tensor) -> torch.Tensor:
    """Flags [B, T] in which what is padding stands on the right; the first token never is."""
    padding = flags.sort(-1).values
    padding[:, 0] = False
    return padding


@torch.no_grad()
def randomise(model: Model, *, seed: int = 0) -> None:
    """Random values for all parameters: many start at 0, behind which nothing could be seen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, 0.5, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1.0)
        elif name.endswith("residual.gain"):
            parameter.mul_(0.1)  # without norms, larger ones blow up values and rounding with them
