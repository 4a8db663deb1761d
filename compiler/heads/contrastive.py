"""Matching two inputs: retrieval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.graph.init import Init
from multiway.compiler.graph.layer_graph import LayerGraph, Value
from multiway.runtime.answers import Answer
from multiway.specs.errors import Report
from multiway.specs.language.fields import Config, Count, Real, key
from multiway.specs.spec import Spec

if TYPE_CHECKING:
    import torch

    from multiway.runtime.tasks.predict import Request


@dataclass(frozen=True, kw_only=True)
class Project(Config):
    """A projection of each tower."""

    required = ("width",)

    width: Count = key("width of the embeddings", default=0)
    bias: bool = key("biases of the projections", default=False)


@dataclass(frozen=True, kw_only=True)
class Contrastive(HeadKind):
    """Every tower is a pass of its own over one input; its first token is projected.

    encode_A(A) -> [B, width] for each tower; loss(A, B) -> loss, {similarity [B, B]}
    similarity = exp(scale) a b', scale learned.
    """

    required = ("kind", "towers")

    kind: Literal["contrastive"] = key("contrastive", default="contrastive")
    towers: tuple[str, ...] = key("the two inputs that are matched", default=())
    project: Project | None = key("a projection of each tower")
    normalise: Literal["l2", "none"] = key("length of the embeddings", default="l2")
    temperature: Real = key(
        "initial temperature: scale starts at ln(1 / temperature)", default=0.07
    )

    def check_spec(self, spec: Spec, report: Report) -> None:
        for name in self.towers:
            self.known_input(spec, name, self.node["towers"], report)
        if len(set(self.towers)) != 2:
            report.add(
                "unknown-input",
                f"matches exactly two different inputs, here are {len(self.towers)}",
                span=self.span("towers"),
                expected="towers: [image, text]",
            )
        if self.temperature <= 0:
            span = self.span("temperature")
            report.add("too-small", f"temperature {self.temperature:g}", span=span, expected="> 0")

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        return self.towers

    def declare(self, declared: Declared, path: str) -> None:
        if self.project is not None:
            for name in self.towers:
                declared.linear(
                    f"{path}.project.{name}",
                    out=self.project.width,
                    width=declared.spec.width,
                    bias=self.project.bias,
                    part=self.project,
                )
        start = Init(kind="constant", value=math.log(1 / self.temperature))
        declared.add(f"{path}.scale", (1,), start, self)

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return ("loss", *(f"encode_{name}" for name in self.towers))

    def build(self, builder: Builder, program: str) -> LayerGraph:
        if program != "loss":
            name = program.removeprefix("encode_")
            values = builder.inputs_for([name])
            return builder.output(embedding=self.encode(builder, name, values))
        values = builder.inputs_for(self.towers)
        embeddings = []
        for name in self.towers:
            with builder.pass_(name):
                embeddings.append(self.encode(builder, name, values))
        first, second = embeddings
        path = f"heads.{builder.spec.head_name}"
        scale = {"scale": f"{path}.scale"}
        scores = builder.node(
            f"{path}.similarity", "similarity", {"a": first, "b": second}, params=scale, part=self
        )
        loss = builder.node(f"{path}.loss", "contrastive_loss", {"similarity": scores}, part=self)
        return builder.output_loss(loss, similarity=scores)

    def encode(self, builder: Builder, name: str, values: dict[str, Value]) -> Value:
        path = f"heads.{builder.spec.head_name}"
        x = builder.trunk(builder.sequence([name], values))
        attrs = {"index": 0}
        x = builder.node(f"{path}.pool", "take_token", {"x": x}, attrs=attrs, part=self)
        if self.project is not None:
            params = f"{path}.project.{name}"
            x = builder.linear(f"{path}.project", x, part=self.project, params=params)
        if self.normalise == "l2":
            x = builder.node(f"{path}.normalise", "l2_normalise", {"x": x}, part=self)
        return x

    def answer(self, spec: Spec) -> Answer:
        # A tower may be embedded alone.
        return Answer(predict=_matched, embed=_embeddings, optional=self.towers)


def _embeddings(request: Request) -> dict[str, torch.Tensor]:
    given = request.inputs.items()
    return {name: request.model.run(f"encode_{name}", **{name: x})[0] for name, x in given}


def _matched(request: Request) -> dict[str, Any]:
    """The first numbers of each embedding, and how similar they are where there are two."""
    found = _embeddings(request)
    result: dict[str, Any] = {
        f"{name}_embedding": [*(round(v, 6) for v in vector[:4].tolist()), "..."]
        for name, vector in found.items()
    }
    if len(found) == 2:
        first, second = found.values()
        result["similarity"] = round(float(first @ second), 6)
    return result


HEAD = Contrastive
