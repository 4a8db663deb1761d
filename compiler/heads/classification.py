"""Classes from pooled tokens: images, question answering, pairs of images."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind
from multiway.compiler.assemble.hiddens import Hiddens
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.parts import plain_norm
from multiway.compiler.graph.layer_graph import LayerGraph, Value
from multiway.compiler.graph.types import Tensor, sym
from multiway.runtime.answers import Answer, most_likely
from multiway.specs.errors import Report
from multiway.specs.language.fields import Count, key
from multiway.specs.language.parts import Activation, PlainNorm
from multiway.specs.spec import Spec

if TYPE_CHECKING:
    from multiway.runtime.tasks.predict import Request

PICKS = ("cls", "first", "mean")
_PICK = re.compile(r"(\w+) of (\w+)")


@dataclass(frozen=True, kw_only=True)
class Classification(HeadKind):
    """Pooled tokens, then [norm], [dense], [hidden, hidden_norm, activation], classes.

    forward(inputs) -> logits [B, classes]; loss(inputs, labels) -> loss, {}
    labels are class numbers [B] for cross_entropy, else soft labels [B, classes].
    With `passes` the trunk runs once over all passes laid along the batch, and their pooled tokens
    are laid end to end, pass by pass.
    """

    required = ("kind", "pool", "classes")

    kind: Literal["classification"] = key("classification", default="classification")
    reads: tuple[str, ...] = key("the inputs, in sequence order; default: all", default=())
    passes: tuple[tuple[str, ...], ...] = key(
        "several passes: program inputs as INPUT or INPUT_suffix", default=()
    )
    pool: tuple[str, ...] = key(
        "tokens: 'cls of image', 'first of text', 'mean of image'", default=()
    )
    norm: PlainNorm | None = key("norm of what was pooled")
    dense: Activation | None = key("a square projection of the norm, then this function")
    hidden: Count | None = key("width of a hidden layer before the classes")
    hidden_norm: PlainNorm | None = key("norm of the hidden layer, before its activation")
    activation: Activation = key("of the hidden layer", default="gelu")
    classes: Count = key("number of classes", default=0)
    bias: bool = key("biases of all projections", default=True)
    loss: Literal["cross_entropy", "bce", "bce_times_classes"] = key(
        "the loss", default="cross_entropy"
    )

    # Reading

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        if self.passes:
            return tuple(dict.fromkeys(base_input(spec, n) or n for n in self.passes[0]))
        return self.reads or tuple(spec.inputs)

    def picks(self) -> list[tuple[str, str]]:
        """(what, input) of every entry of `pool`."""
        found = [_PICK.fullmatch(pick) for pick in self.pool]
        return [(match[1], match[2]) for match in found if match]

    def check_spec(self, spec: Spec, report: Report) -> None:
        for name in self.reads:
            self.known_input(spec, name, self.node["reads"], report)
        self._check_passes(spec, report)
        if not report.problems:
            for node in self.node["pool"].value:
                self._check_pick(spec, str(node.value), node.span, report)
        for name in ("hidden_norm", "activation"):
            if self.hidden is None and self.node.get(name) is not None:
                report.add(
                    "unused-key",
                    f"{name!r} belongs to a hidden layer, and there is none",
                    span=self.node.key_span(name),
                    expected="hidden: a width",
                )
        if self.reads and self.passes:
            report.add(
                "unused-key",
                "'reads' says nothing where 'passes' names the inputs",
                span=self.node.key_span("reads"),
            )
        if not self.pool:
            report.add("missing-key", "nothing is pooled", span=self.span("pool"))

    def _check_passes(self, spec: Spec, report: Report) -> None:
        if not self.passes:
            return
        kinds = [tuple(base_input(spec, name) for name in each) for each in self.passes]
        for each, node in zip(self.passes, self.node["passes"].value, strict=True):
            for name, place in zip(each, node.value, strict=True):
                if base_input(spec, name) is None:
                    self.known_input(spec, name, place, report)
        if len(set(kinds[0])) < len(kinds[0]):
            report.add(
                "duplicate-value",
                "a pass reads two of one input",
                span=self.span("passes"),
                expected="every input once a pass, e.g. [[image_a, text], [image_b, text]]",
            )
        if len(set(kinds)) > 1:
            report.add(
                "unknown-input",
                "all passes must read the same inputs in the same order",
                span=self.span("passes"),
            )

    def _check_pick(self, spec: Spec, pick: str, span: object, report: Report) -> None:
        match = _PICK.fullmatch(pick)
        names = self.inputs(spec)
        if match is None or match[1] not in PICKS or match[2] not in names:
            report.add(
                "unknown-pool",
                f"{pick!r} names no token of this head",
                span=span,
                expected=f"{' or '.join(PICKS)} of {' or '.join(names)}",
            )
        elif match[1] == "cls" and not self._has_cls(spec, match[2]):
            expected = f"'first of {match[2]}' or 'mean of {match[2]}'"
            report.add("unknown-pool", f"{match[2]!r} has no cls", span=span, expected=expected)

    def _has_cls(self, spec: Spec, name: str) -> bool:
        embed = spec.embed.get(spec.inputs[name].modality)
        return embed is not None and embed.cls

    # Parameters

    def declare(self, declared: Declared, path: str) -> None:
        width = declared.spec.width * len(self.pool) * max(len(self.passes), 1)
        plain_norm.declare(declared, f"{path}.norm", self.norm, width=width)
        if self.dense:
            declared.linear(f"{path}.dense", out=width, width=width, bias=self.bias, part=self)
        if self.hidden:
            declared.linear(
                f"{path}.hidden", out=self.hidden, width=width, bias=self.bias, part=self
            )
            plain_norm.declare(declared, f"{path}.hidden_norm", self.hidden_norm, width=self.hidden)
            width = self.hidden
        declared.linear(f"{path}.classes", out=self.classes, width=width, bias=self.bias, part=self)

    # Programs

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return ("forward", "loss")

    def build(self, builder: Builder, program: str) -> LayerGraph:
        names = self.inputs(builder.spec)
        values = self._joined(builder) if self.passes else builder.inputs_for(names)
        seq = builder.sequence(names, values)
        logits = self._logits(builder, self._pooled(builder, seq, values))
        if program == "forward":
            return builder.output(logits=logits)
        return self._loss(builder, logits)

    def _joined(self, builder: Builder) -> dict[str, Value]:
        """The inputs of all passes, laid along the batch; an input may serve several passes."""
        spec, made = builder.spec, {}
        columns = list(zip(*self.passes, strict=True))
        for column in columns:
            base = base_input(spec, column[0])
            assert base is not None
            for name in dict.fromkeys(column):
                (made[name],) = builder.input(
                    name, builder.token_type(base), part=spec.inputs[base]
                )
        values = {}
        for column in columns:
            base = base_input(spec, column[0])
            assert base is not None
            values[base] = self._join(builder, base, [made[name] for name in column])
            if spec.inputs[base].padding == "right":
                shape = builder.token_type(base).shape[:2]
                masks = {
                    name: builder.input(f"{name}_padding", Tensor(shape, "bool"))[0]
                    for name in dict.fromkeys(column)
                }
                padding = f"{base}_padding"
                values[padding] = self._join(builder, padding, [masks[name] for name in column])
        return values

    def _join(self, builder: Builder, name: str, parts: list[Value]) -> Value:
        return builder.node(f"embed.passes.{name}", "join_batch", {"parts": parts}, part=self)

    def _pooled(self, builder: Builder, seq: Hiddens, values: Mapping[str, Value]) -> Value:
        path = f"heads.{builder.spec.head_name}"
        parts = self.segments(builder, builder.trunk(seq), seq)
        taken = [
            self._take(builder, f"{path}.pool.{i}", what, parts[name], name, values)
            for i, (what, name) in enumerate(self.picks())
        ]
        x = taken[0]
        if len(taken) > 1:
            x = builder.node(f"{path}.pool", "concat_features", {"parts": taken}, part=self)
        if self.passes:
            attrs = {"parts": len(self.passes)}
            each = builder.nodes(f"{path}.passes", "split_batch", {"x": x}, attrs=attrs, part=self)
            x = builder.node(f"{path}.passes.join", "concat_features", {"parts": each}, part=self)
        return x

    def _take(
        self,
        builder: Builder,
        path: str,
        what: str,
        x: Value,
        name: str,
        values: Mapping[str, Value],
    ) -> Value:
        if what != "mean":
            return builder.node(path, "take_token", {"x": x}, attrs={"index": 0}, part=self)
        given = {"x": x}
        if (padding := values.get(f"{name}_padding")) is not None:
            given["padding"] = padding
        skip = 1 if self._has_cls(builder.spec, name) else 0
        return builder.node(path, "mean_tokens", given, attrs={"skip": skip}, part=self)

    def _logits(self, builder: Builder, x: Value) -> Value:
        path = f"heads.{builder.spec.head_name}"
        if self.norm is not None:
            x = builder.norm(f"{path}.norm", self.norm, x)
        if self.dense:
            x = builder.linear(f"{path}.dense", x, part=self)
            x = builder.activation(f"{path}.dense.activation", self.dense, x, part=self)
        if self.hidden:
            x = builder.linear(f"{path}.hidden", x, part=self)
            if self.hidden_norm is not None:
                x = builder.norm(f"{path}.hidden_norm", self.hidden_norm, x)
            x = builder.activation(f"{path}.hidden.activation", self.activation, x, part=self)
        return builder.linear(f"{path}.classes", x, part=self)

    def _loss(self, builder: Builder, logits: Value) -> LayerGraph:
        path, b = f"heads.{builder.spec.head_name}.loss", sym("B")
        if self.loss == "cross_entropy":
            (labels,) = builder.input("labels", Tensor((b,), "int"))
            given = {"logits": logits, "labels": labels}
            attrs = {"smoothing": 0.0}
            loss, count = builder.nodes(path, "cross_entropy", given, attrs=attrs, part=self)
            return builder.output_loss(loss, count=count)
        (labels,) = builder.input("labels", Tensor((b, self.classes)))
        loss = builder.node(
            path,
            "binary_cross_entropy",
            {"logits": logits, "labels": labels},
            attrs={"times_classes": self.loss == "bce_times_classes"},
            part=self,
        )
        return builder.output_loss(loss)

    # Prediction

    def answer(self, spec: Spec) -> Answer:
        return Answer(predict=functools.partial(_classes, independent=self.loss != "cross_entropy"))


def _classes(request: Request, *, independent: bool) -> dict[str, Any]:
    """The likeliest classes. independent: several may hold, so they need not sum to 1."""
    logits = request.model(**request.inputs)[0].float()
    probabilities = logits.sigmoid() if independent else logits.softmax(-1)
    return {"classes": most_likely(probabilities, request.top)}


def base_input(spec: Spec, name: str) -> str | None:
    """The input of the spec that a program input stands for: `image_a` is an `image`."""
    if name in spec.inputs:
        return name
    base = name.rpartition("_")[0]
    return base if base in spec.inputs else None


HEAD = Classification
