"""Predicting what was masked: words of a text, or visual tokens of an image."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.graph.layer_graph import LayerGraph, Value
from multiway.compiler.graph.types import Tensor
from multiway.runtime.answers import Answer, most_likely
from multiway.specs.errors import MultiwayError, Report
from multiway.specs.language.fields import Count, key
from multiway.specs.language.inputs import Form
from multiway.specs.spec import Spec

if TYPE_CHECKING:
    from multiway.runtime.tasks.predict import Request

_MASKED_SHARE = 0.4  # of the patches of an image, where visual tokens are predicted


@dataclass(frozen=True, kw_only=True)
class Masked(HeadKind):
    """Masked language or image modelling (arXiv:2208.10442).

    forward(inputs) -> logits [B, T, classes] at every token of the predicted input; for an image
        at every patch, and `A_masked` [B, patches] says which patches are hidden
    loss(inputs, labels [B, T]) -> loss, {count}; labels are -100 where nothing was masked

    Words are masked outside, by the id of the mask token.
    """

    required: ClassVar[tuple[str, ...]] = ("kind", "predict", "classes")

    kind: Literal["masked"] = key("masked", default="masked")
    reads: tuple[str, ...] = key("the inputs, in sequence order; default: `predict`", default=())
    predict: str = key("the input whose tokens are predicted", default="")
    classes: Count = key("number of words, or of visual tokens", default=0)
    bias: bool = key("bias of the output", default=True)

    def check_spec(self, spec: Spec, report: Report) -> None:
        known = [self.known_input(spec, n, self.node["reads"], report) for n in self.reads]
        if not self.known_input(spec, self.predict, self.node["predict"], report) or not all(known):
            return
        if self.predict not in self.inputs(spec):
            report.add(
                "unknown-input",
                f"{self.predict!r} is predicted, but not read",
                span=self.span("reads"),
                expected=f"reads: [..., {self.predict}]",
            )
        each = spec.inputs[self.predict]
        embed = spec.embed.get(each.modality)
        if each.form() == Form.IMAGE and not (embed is not None and embed.mask_token):
            report.add(
                "missing-key",
                f"patches of {self.predict!r} cannot be masked",
                span=self.span("predict"),
                expected=f"embed: {{{each.modality}: {{mask_token: true}}}}",
            )

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        return self.reads or (self.predict,)

    def declare(self, declared: Declared, path: str) -> None:
        width = declared.spec.width
        declared.linear(path, out=self.classes, width=width, bias=self.bias, part=self)

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return ("forward", "loss")

    def build(self, builder: Builder, program: str) -> LayerGraph:
        names = self.inputs(builder.spec)
        values = builder.inputs_for(names)
        if builder.spec.inputs[self.predict].form() == Form.IMAGE:
            values |= builder.masks_for([self.predict])
        seq = builder.sequence(names, values)
        logits = self.logits(builder, self.segments(builder, builder.trunk(seq), seq))
        if program == "forward":
            return builder.output(logits=logits)
        (labels,) = builder.input("labels", Tensor(builder.graph.shape(logits)[:2], "int"))
        loss, count = builder.nodes(
            f"heads.{builder.spec.head_name}.loss",
            "cross_entropy",
            {"logits": logits, "labels": labels},
            attrs={"smoothing": 0.0},
            part=self,
        )
        return builder.output_loss(loss, count=count)

    def logits(self, builder: Builder, parts: dict[str, Value]) -> Value:
        spec = builder.spec
        path, x = f"heads.{spec.head_name}", parts[self.predict]
        embed = spec.embed.get(spec.inputs[self.predict].modality)
        if embed is not None and embed.cls:
            attrs = {"count": 1}
            x = builder.node(f"{path}.patches", "skip_tokens", {"x": x}, attrs=attrs, part=self)
        return builder.linear(f"{path}.logits", x, part=self, params=path)

    def answer(self, spec: Spec) -> Answer:
        image = spec.inputs[self.predict].form() == Form.IMAGE
        predict = _visual_tokens if image else _words
        return Answer(predict=functools.partial(predict, name=self.predict))


def _words(request: Request, *, name: str) -> dict[str, Any]:
    """The likeliest words under every mask of a text. Raises MultiwayError where it has none."""
    special = request.model.spec.inputs[name].special
    mask = special.mask if special else None
    places = [i for i, token in enumerate(request.inputs[name][0].tolist()) if token == mask]
    if not places:
        message = "the text has no <mask>, so there is nothing to predict"
        raise MultiwayError.one("missing-input", message, place="text")
    logits = request.model(**request.inputs)[0].float()
    words = [
        {"position": i, "words": most_likely(logits[i].softmax(-1), request.top)} for i in places
    ]
    return {"masks": words}


def _visual_tokens(request: Request, *, name: str) -> dict[str, Any]:
    """The likeliest visual token of each hidden patch; the same patches are hidden every time."""
    import torch

    model = request.model
    shape = next(e.shape for e in model.expected("forward") if e.name == f"{name}_masked")
    patches = int(shape[1])
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(0))
    hidden = sorted(order[: max(1, int(_MASKED_SHARE * patches))].tolist())
    masked = torch.zeros(1, patches, dtype=torch.bool)
    masked[0, hidden] = True
    logits = model(**request.inputs, **{f"{name}_masked": masked.to(model.device)})[0]
    return {"masked_patches": hidden, "visual_tokens": logits[hidden].argmax(-1).tolist()}


HEAD = Masked
