"""A transformer block: attention, feed-forward, and the layers that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from multiway.specs.language.fields import Config, Count, Kinds, Real, Test, key
from multiway.specs.language.parts import Activation, Norm, PlainNorm
from multiway.specs.language.routing import Routing


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
class Layers(Block):
    """Changes to `block` for the layers where a test holds."""

    required = ("where",)

    where: Test = key("the layers, e.g. layer >= depth - 3", default=False)
