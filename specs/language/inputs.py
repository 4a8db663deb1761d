"""What a model reads, and how it becomes vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from multiway.specs.errors import Report, quote
from multiway.specs.language.fields import NAME, NAME_RULE, Config, Count, Kinds, Offset, Real, key


@dataclass(frozen=True, kw_only=True)
class Special(Config):
    """Ids of the tokens that mean something."""

    start: Offset | None = key("first token of a text")
    padding: Offset | None = key("fills up shorter texts")
    end: Offset | None = key("last token of a text")
    mask: Offset | None = key("stands for a hidden word")


class Form(StrEnum):
    """What an input is made of."""

    TOKENS = "tokens"
    IMAGE = "image"
    FEATURES = "features"


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

    def form(self) -> Form:
        """What its values are, as the one key of vocab, size and features says that is given."""
        if self.vocab is not None:
            return Form.TOKENS
        return Form.IMAGE if self.size is not None else Form.FEATURES

    only_for: ClassVar[dict[str, tuple[Form, ...]]] = {
        "context": (Form.TOKENS, Form.FEATURES),
        "padding": (Form.TOKENS, Form.FEATURES),
        "special": (Form.TOKENS,),
        "channels": (Form.IMAGE,),
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
class Learned(Config):
    """A learned vector for every position, added to the embedding."""

    required = ("kind",)

    kind: Literal["learned"] = key("learned", default="learned")
    rows: Count | None = key("rows of the table, offset included; default: what the input needs")
    offset: Offset = key("row of the first position", default=0)


@dataclass(frozen=True, kw_only=True)
class Embed(Config):
    """How the inputs of one modality become vectors."""

    patch: Patch | None = key("image: the patches")
    cls: bool = key("image: a learned token in front", default=False)
    mask_token: bool = key("image: a learned vector for masked patches", default=False)
    position: Annotated[Learned, Kinds(Learned)] | None = key("learned positions")
    bias: bool = key("vectors: bias of the projection", default=True)


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
