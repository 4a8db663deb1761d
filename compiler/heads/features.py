"""The trunk itself: hidden states of any subset of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.runtime.answers import Answer
from multiway.specs.errors import Report
from multiway.specs.language.fields import key
from multiway.specs.spec import Spec

if TYPE_CHECKING:
    from multiway.runtime.tasks.predict import Request


@dataclass(frozen=True, kw_only=True)
class Features(HeadKind):
    """One program for every subset of the inputs: forward for all, forward_image and so on.

    forward_A_B(A, B) -> hidden states [B, tokens, D] of the joined sequence. An image whose
    modality has a mask_token takes `A_masked` [B, patches], true where a patch is hidden.
    """

    kind: Literal["features"] = key("features", default="features")
    reads: tuple[str, ...] = key("the inputs, in sequence order; default: all", default=())

    def check_spec(self, spec: Spec, report: Report) -> None:
        for name in self.reads:
            self.known_input(spec, name, self.node["reads"], report)

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        return self.reads or tuple(spec.inputs)

    def declare(self, declared: Declared, path: str) -> None:
        """Features have no parameters of their own."""

    def subsets(self, spec: Spec) -> dict[str, tuple[str, ...]]:
        """Program name to the inputs that it reads; the program of all inputs comes first."""
        names = self.inputs(spec)
        found = {"forward": names}
        for count in range(1, len(names)):
            for each in combinations(names, count):
                found["forward_" + "_".join(each)] = each
        return found

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return tuple(self.subsets(spec))

    def build(self, builder: Builder, program: str) -> LayerGraph:
        names = self.subsets(builder.spec)[program]
        values = builder.inputs_for(names)
        values |= builder.masks_for(names)
        seq = builder.sequence(names, values)
        return builder.output(features=builder.trunk(seq))

    def answer(self, spec: Spec) -> Answer:
        return Answer(predict=_described)


def _described(request: Request) -> dict[str, Any]:
    """Shape, mean and standard deviation of the hidden states."""
    features = request.model(**request.inputs)
    numbers = features.float()
    return {
        "shape": list(features.shape),
        "mean": round(float(numbers.mean()), 6),
        "std": round(float(numbers.std()), 6),
    }


HEAD = Features
