"""Next-token prediction, with a cache for generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind, require_text, text_input
from multiway.compiler.assemble.parameters import Declared, start_of
from multiway.compiler.graph.layer_graph import LayerGraph, Value
from multiway.compiler.graph.types import Tensor, sym
from multiway.runtime.answers import Answer
from multiway.specs.checks.routing import require_causal
from multiway.specs.errors import Report
from multiway.specs.language.fields import key
from multiway.specs.spec import Spec

if TYPE_CHECKING:
    from multiway.runtime.tasks.predict import Request


@dataclass(frozen=True, kw_only=True)
class CausalLM(HeadKind):
    """Language modelling from left to right.

    forward(tokens [B, T]) -> logits [B, T, V]
    loss(tokens, labels [B, T]) -> loss, {count}; labels[b, t] is the token behind tokens[b, t],
        -100 where it does not count
    prefill(tokens, cache) -> logits, cache; decode(tokens [B, n], positions [B, n], cache) -> same
    """

    kind: Literal["causal_lm"] = key("causal_lm", default="causal_lm")
    text: str | None = key("the input that is modelled; default: the first of token ids")
    tie: bool = key("the output matrix is the embedding table", default=False)
    bias: bool = key("bias of the output", default=False)

    def check_spec(self, spec: Spec, report: Report) -> None:
        require_text(self, spec, text_input(spec, self.text), report, key="text")
        for block in dict.fromkeys(spec.blocks):
            if block.attention.mask != "causal":
                report.add(
                    "not-causal",
                    "causal_lm predicts from the past, but attention sees the future",
                    span=block.attention.span("mask"),
                    expected="mask: causal",
                )
        require_causal(spec, self.kind, report)

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        name = text_input(spec, self.text)
        assert name is not None
        return (name,)

    def declare(self, declared: Declared, path: str) -> None:
        spec = declared.spec
        (name,) = self.inputs(spec)
        vocab = spec.inputs[name].vocab
        assert vocab is not None
        if not self.tie:
            declared.linear(path, out=vocab, width=spec.width, bias=self.bias, part=self)
        elif self.bias:
            declared.add(f"{path}.bias", (vocab,), start_of("linear", "bias"), self)

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return ("forward", "loss", "prefill", "decode")

    def build(self, builder: Builder, program: str) -> LayerGraph:
        (name,) = self.inputs(builder.spec)
        values = builder.inputs_for([name], padding=False)
        if program in ("forward", "loss"):
            logits = self.logits(builder, builder.trunk(builder.sequence([name], values)))
            if program == "forward":
                return builder.output(logits=logits)
            shape = builder.token_type(name).shape
            (labels,) = builder.input("labels", Tensor(shape, "int"))
            return self.loss(builder, logits, labels)
        return self.cached(builder, name, values, reads=program == "decode")

    def loss(self, builder: Builder, logits: Value, labels: Value) -> LayerGraph:
        path = f"heads.{builder.spec.head_name}.loss"
        given = {"logits": logits, "labels": labels}
        loss, count = builder.nodes(path, "cross_entropy", given, attrs={"smoothing": 0.0})
        return builder.output_loss(loss, count=count)

    def cached(
        self, builder: Builder, name: str, values: dict[str, Value], *, reads: bool
    ) -> LayerGraph:
        if reads:
            shape = (sym("B"), builder.length(name))
            (values[f"{name}_positions"],) = builder.input("positions", Tensor(shape, "int"))
        cache = builder.input("cache", *builder.cache_types())
        seq = builder.sequence([name], values)
        positions = values.get(f"{name}_positions")
        if positions is None:
            positions = builder.node("cache.positions", "positions", {"x": seq.hidden})
        seq.positions = positions
        builder.open_cache(seq, cache, positions=positions, reads=reads)
        logits = self.logits(builder, builder.trunk(seq))
        assert seq.cache is not None
        return builder.output(logits=logits, cache=[cache[0], *seq.cache.written])

    def logits(self, builder: Builder, x: Value) -> Value:
        spec = builder.spec
        path = f"heads.{spec.head_name}"
        (name,) = self.inputs(spec)
        table = f"embed.{spec.inputs[name].modality}.weight"
        params = {"weight": table if self.tie else f"{path}.weight"}
        if self.bias:
            params["bias"] = f"{path}.bias"
        return builder.node(f"{path}.logits", "linear", {"x": x}, params=params, part=self)

    def answer(self, spec: Spec) -> Answer:
        (name,) = self.inputs(spec)
        return Answer(predict=_continued, continues=name, end_token=False)


def _continued(request: Request) -> dict[str, Any]:
    """The likeliest tokens behind the text."""
    from multiway.runtime.generation.greedy import greedy

    ((name, prompt),) = request.inputs.items()
    special = request.model.spec.inputs[name].special
    end = special.end if special else None
    (ids,) = greedy(request.model, [prompt[0].tolist()], tokens=request.tokens, end=end)
    return {"text": request.decode(ids), "ids": ids}


HEAD = CausalLM
