"""Text behind a prefix (an image, say): captioning by filling in masked words."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind, require_text, text_input
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.graph.layer_graph import LayerGraph, Value
from multiway.compiler.graph.types import Tensor, sym
from multiway.runtime.answers import Answer
from multiway.specs.checks.routing import require_causal
from multiway.specs.errors import Report
from multiway.specs.language.fields import Real, key
from multiway.specs.spec import Spec

if TYPE_CHECKING:
    from multiway.runtime.tasks.predict import Request


@dataclass(frozen=True, kw_only=True)
class PrefixLM(HeadKind):
    """The prefix sees itself; a text token sees the prefix and the text up to itself.

    forward(prefix, text [B, T]) -> logits [B, T, V]
    loss(prefix, text, labels [B, T]) -> loss, {count}; labels are the words under the masks,
        -100 elsewhere
    prefill(prefix, text, cache) -> logits, cache; decode(text [B, n], positions [B, n], cache)

    A step of generation gives the word found last and a mask token. The next step writes over the
    mask token's key and value, so that they are dropped.
    """

    required = ("kind", "prefix")

    kind: Literal["prefix_lm"] = key("prefix_lm", default="prefix_lm")
    prefix: str = key("the input that is seen as a whole", default="")
    text: str | None = key("the input that is written; default: the first of token ids")
    bias: bool = key("bias of the output", default=False)
    label_smoothing: Real = key("probability that the target gives to wrong words", default=0.0)

    def check_spec(self, spec: Spec, report: Report) -> None:
        text = text_input(spec, self.text)
        require_text(self, spec, text, report, key="text")
        self.known_input(spec, self.prefix, self.node.get("prefix") or self.node, report)
        if self.prefix == text:
            report.add("unknown-input", "prefix and text are one", span=self.span("prefix"))
        elif self.prefix in spec.inputs and spec.inputs[self.prefix].padding != "none":
            report.add(
                "padded-prefix",
                f"the prefix {self.prefix!r} is padded, and the cache could not tell where it ends",
                span=spec.inputs[self.prefix].span("padding"),
                expected="padding: none",
            )
        if not 0 <= self.label_smoothing < 1:
            report.add(
                "too-large-value",
                f"label_smoothing {self.label_smoothing:g}",
                span=self.span("label_smoothing"),
                expected="at least 0 and less than 1",
            )
        require_causal(spec, self.kind, report)

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        text = text_input(spec, self.text)
        assert text is not None
        return (self.prefix, text)

    def declare(self, declared: Declared, path: str) -> None:
        spec = declared.spec
        vocab = spec.inputs[self.inputs(spec)[1]].vocab
        assert vocab is not None
        declared.linear(path, out=vocab, width=spec.width, bias=self.bias, part=self)

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return ("forward", "loss", "prefill", "decode")

    def build(self, builder: Builder, program: str) -> LayerGraph:
        prefix, text = self.inputs(builder.spec)
        if program == "decode":
            return self.decode(builder, text)
        values = builder.inputs_for([prefix, text], padding=program != "prefill")
        if program == "prefill":
            return self.prefill(builder, values)
        seq = builder.sequence([prefix, text], values, mask="prefix")
        logits = self.logits(builder, self.segments(builder, builder.trunk(seq), seq)[text])
        if program == "forward":
            return builder.output(logits=logits)
        (labels,) = builder.input("labels", Tensor(builder.token_type(text).shape, "int"))
        loss, count = builder.nodes(
            f"heads.{builder.spec.head_name}.loss",
            "cross_entropy",
            {"logits": logits, "labels": labels},
            attrs={"smoothing": self.label_smoothing},
            part=self,
        )
        return builder.output_loss(loss, count=count)

    def prefill(self, builder: Builder, values: dict[str, Value]) -> LayerGraph:
        prefix, text = self.inputs(builder.spec)
        cache = builder.input("cache", *builder.cache_types())
        seq = builder.sequence([prefix, text], values, mask="prefix")
        positions = builder.node("cache.positions", "positions", {"x": seq.hidden})
        builder.open_cache(seq, cache, positions=positions, reads=False)
        x = self.segments(builder, builder.trunk(seq), seq)[text]
        assert seq.cache is not None and seq.sizes is not None
        given = {"offset": cache[0], "sizes": seq.sizes}
        offset = builder.node("cache.offset", "shift_offset", given)
        return builder.output(logits=self.logits(builder, x), cache=[offset, *seq.cache.written])

    def decode(self, builder: Builder, text: str) -> LayerGraph:
        values = builder.inputs_for([text], padding=False)
        shape = (sym("B"), builder.length(text))
        (positions,) = builder.input("positions", Tensor(shape, "int"))
        cache = builder.input("cache", *builder.cache_types())
        values[f"{text}_positions"] = positions
        seq = builder.sequence([text], values, mask="prefix")
        builder.open_cache(seq, cache, positions=positions, reads=True)
        assert seq.cache is not None
        # What is written follows the prefix, so a way that serves both modalities serves it too.
        seq.cached = (builder.spec.inputs[self.prefix].modality,)
        seq.positions = seq.cache.slots  # rotary positions count along the joined sequence
        logits = self.logits(builder, builder.trunk(seq))
        return builder.output(logits=logits, cache=[cache[0], *seq.cache.written])

    def logits(self, builder: Builder, x: Value) -> Value:
        path = f"heads.{builder.spec.head_name}"
        return builder.linear(f"{path}.logits", x, part=self, params=path)

    def answer(self, spec: Spec) -> Answer:
        prefix, text = self.inputs(spec)
        # The text is what the head writes; it starts from nothing.
        predict = functools.partial(_caption, prefix=prefix)
        return Answer(predict=predict, optional=(text,), end_token=False)


def _caption(request: Request, *, prefix: str) -> dict[str, Any]:
    from multiway.runtime.generation.greedy import caption

    (ids,) = caption(request.model, request.inputs[prefix], tokens=request.tokens)
    return {"caption": request.decode(ids), "ids": ids}


HEAD = PrefixLM
