"""The vocabulary of a spec: every mapping and every key that an author may write.

specs/LANGUAGE.md explains them; `multiway schema` prints them as a JSON Schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from multiway.specs.errors import Report, quote
from multiway.specs.language.fields import Config, Count, Formula, Kinds, Offset, Real, Test, key
from multiway.specs.language.parts import Activation, Initial, Norm, PlainNorm
from multiway.specs.language.routing import Routing
from multiway.specs.language.wiring import Wiring

if TYPE_CHECKING:
    from multiway.specs.spec import Spec

# `$` alone would let a line break pass at the end.
NAME = r"^[a-z][a-z0-9_]*$(?!\n)"
NAME_RULE = "small letters, digits and _, beginning with a letter"


@dataclass(frozen=True, kw_only=True)
class QKNorm(Config):
    """Norms of query and key, before positions are applied."""

    short = "kind"
    switch = True

    kind: Literal["layer_norm", "rms_norm"] | None = key("default: that of block.norm")
    eps: Real | None = key("default: that of block.norm")
    over: Literal["head", "width"] = key(
        "each head alone, or all heads laid end to end", default="head"
    )


@dataclass(frozen=True, kw_only=True)
class Rotary(Config):
    """Rotary position embedding (arXiv:2104.09864)."""

    kind: Literal["rotary"] = key("rotary", default="rotary")
    fraction: Real = key("the leading part of each head that is turned", default=1.0)
    base: Real = key("base of the frequencies", default=10000.0)
    pairs: Literal["half", "adjacent"] = key(
        "which channels turn together: j with j + n/2, or 2j with 2j + 1", default="half"
    )


@dataclass(frozen=True, kw_only=True)
class Learned(Config):
    """A learned vector for every position, added to the embedding."""

    required = ("kind",)

    kind: Literal["learned"] = key("learned", default="learned")
    rows: Count | None = key("rows of the table, offset included; default: what the input needs")
    offset: Offset = key("row of the first position", default=0)


@dataclass(frozen=True, kw_only=True)
class Attention(Config):
    """Multi-head attention and what surrounds it."""

    required = ("heads",)

    heads: Count = key("number of query heads", default=0)
    kv_heads: Count | None = key("number of key and value heads; default: heads")
    head_width: Count | None = key("width of one head; default: width / heads")
    mask: Literal["none", "causal"] = key("who may see whom", default="none")
    bias: bool = key("biases on all four projections", default=False)
    qk_norm: QKNorm | None = key("norms of query and key")
    position: Annotated[Rotary, Kinds(Rotary)] | None = key("positions applied to query and key")
    sub_norm: PlainNorm | None = key("a norm between attention and its output projection (Magneto)")
    norm: Norm | None = key("the input norm; default: block.norm")
    experts: Routing | None = key("copies of the projections")


@dataclass(frozen=True, kw_only=True)
class FFN(Config):
    """The feed-forward part."""

    required = ("hidden",)

    hidden: Count = key("hidden width", default=0)
    activation: Activation = key("between the two projections", default="gelu")
    gate: bool = key("gated: down(act(gate x) * up x)", default=False)
    bias: bool = key("biases on the projections", default=False)
    sub_norm: PlainNorm | None = key("a norm before the down projection (Magneto)")
    norm: Norm | None = key("the input norm; default: block.norm")
    experts: Routing | None = key("copies of the whole part")


@dataclass(frozen=True, kw_only=True)
class Block(Config):
    """One transformer block."""

    required: ClassVar[tuple[str, ...]] = ("norm", "attention", "ffn")

    norm: Norm = key("the norm that every other norm takes its kind and eps from")
    attention: Attention = key("the attention part")
    ffn: FFN = key("the feed-forward part")
    order: Literal["sequential", "parallel"] = key(
        "parallel: attention and feed-forward both read the block's input", default="sequential"
    )


@dataclass(frozen=True, kw_only=True)
class Special(Config):
    """Ids of the tokens that mean something."""

    start: Offset | None = key("first token of a text")
    padding: Offset | None = key("fills up shorter texts")
    end: Offset | None = key("last token of a text")
    mask: Offset | None = key("stands for a hidden word")


@dataclass(frozen=True, kw_only=True)
class Input(Config):
    """One input: token ids (vocab), an image (size, channels) or vectors (features)."""

    required = ("modality",)

    modality: str = key("which modality its tokens are", default="")
    vocab: Count | None = key("token ids: size of the vocabulary")
    context: Count | None = key("longest sequence; default: the rows of its positions")
    padding: Literal["none", "right"] = key("right: programs take a padding mask", default="none")
    special: Special | None = key("ids of special tokens")
    size: Count | None = key("image: side in pixels")
    channels: Count = key("image: channels", default=3)
    features: Count | None = key("vectors: their width")

    def form(self) -> str:
        """tokens, image or features."""
        if self.vocab is not None:
            return "tokens"
        return "image" if self.size is not None else "features"

    only_for: ClassVar[dict[str, tuple[str, ...]]] = {
        "context": ("tokens", "features"),
        "padding": ("tokens", "features"),
        "special": ("tokens",),
        "channels": ("image",),
    }

    def check(self, report: Report) -> None:
        given = [name for name in ("vocab", "size", "features") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "does not say what it holds"
            expected = "one of vocab (token ids), size (an image), features (vectors)"
            report.add("input-form", f"this input {what}", span=self.node.span, expected=expected)
            return
        for name, forms in self.only_for.items():
            if self.node.get(name) is not None and self.form() not in forms:
                message = f"{name} has no meaning for an input with {given[0]}"
                report.add("input-form", message, span=self.node.key_span(name))
        if not re.fullmatch(NAME, self.modality) or self.modality == "fused":
            report.add(
                "bad-name",
                f"{quote(self.modality)} cannot name a modality",
                span=self.span("modality"),
                expected=f"{NAME_RULE}; not `fused`",
            )


@dataclass(frozen=True, kw_only=True)
class Patch(Config):
    """Cuts an image into square patches and projects each."""

    short = ""
    required = ("size",)

    size: Count = key("side of a patch in pixels", default=0)
    bias: bool = key("bias of the projection", default=True)


@dataclass(frozen=True, kw_only=True)
class Embed(Config):
    """How the inputs of one modality become vectors."""

    patch: Patch | None = key("image: the patches")
    cls: bool = key("image: a learned token in front", default=False)
    mask_token: bool = key("image: a learned vector for masked patches", default=False)
    position: Annotated[Learned, Kinds(Learned)] | None = key("learned positions")
    bias: bool = key("vectors: bias of the projection", default=True)


@dataclass(frozen=True, kw_only=True)
class Output(Config):
    """What follows the last block."""

    norm: Norm | None = key("the final norm")


@dataclass(frozen=True, kw_only=True)
class Preprocess(Config):
    """How an image file becomes the input of a head."""

    resize: Literal["square", "crop"] = key(
        "square: the whole image, pressed into the square; crop: its centre", default="square"
    )
    crop: Real = key("crop: the part of the shorter side that is kept", default=1.0)
    mean: tuple[Real, ...] = key("of red, green, blue, on a scale of 0 to 1", default=(0.5,) * 3)
    std: tuple[Real, ...] = key("what is divided by afterwards", default=(0.5,) * 3)

    def check(self, report: Report) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                report.add("wrong-type", f"{name} is for red, green, blue", span=self.span(name))
        if not 0 < self.crop <= 1:
            span = self.span("crop")
            report.add("too-large-value", f"crop {self.crop:g}", span=span, expected="in (0, 1]")
        if any(value <= 0 for value in self.std):
            report.add("too-small", "std is divided by", span=self.span("std"), expected="> 0")


@dataclass(frozen=True, kw_only=True)
class Head(Config):
    """A task: what is read, how it is pooled, what is predicted, the loss."""

    required: ClassVar[tuple[str, ...]] = ("kind",)

    like: str | None = key("another head of this spec, which this one changes")
    dims: dict[str, Formula] = key("dims that differ for this task", default={})
    output_norm: bool = key("whether output.norm is used", default=True)
    preprocess: Preprocess | None = key("how image files are read; default: squares, -1 to 1")

    def image_preprocess(self) -> Preprocess:
        return self.preprocess or Preprocess(node=self.node)

    def check_spec(self, spec: Spec, report: Report) -> None:
        """Adds what does not fit between this head and its spec. Head kinds override."""


@dataclass(frozen=True, kw_only=True)
class Layers(Block):
    """Changes to `block` for the layers where a test holds."""

    required = ("where",)

    where: Test = key("the layers, e.g. layer >= depth - 3", default=False)


@dataclass(frozen=True, kw_only=True)
class Document(Config):
    """A whole spec. `heads` is filled in by the head kinds that are known."""

    required = ("multiway", "name", "dims", "inputs", "block", "heads")

    multiway: Literal[1] = key("version of the language", default=1)
    name: str = key("name of the model", default="")
    doc: str = key("a line on what it is", default="")
    cite: tuple[str, ...] = key("keys of the papers", default=())
    extends: str | None = key("the spec this one changes: a zoo name, or a file below this one")
    dims: dict[str, Count | Real] = key("numbers an author may change", default={})
    inputs: dict[str, Input] = key("what the model reads, in sequence order", default={})
    embed: dict[str, Embed] = key("by modality: how inputs become vectors", default={})
    block: Block | None = key("the transformer block")
    layers: tuple[Layers, ...] = key("changes to block for some layers", default=())
    wiring: Wiring | None = key("what every block reads of the blocks before it")
    output: Output | None = key("what follows the last block")
    heads: dict[str, Head] = key("the tasks", default={})
    init: dict[str, Initial] = key(
        "initial values by parameter path; the last match holds", default={}
    )


RESERVED = {
    *("kind", "use", "layer", "ways", "sources", "last", "fan_in", "fan_out"),
    *("sublayer", "embedding", "newest"),
}
