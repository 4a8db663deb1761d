"""What every head kind provides. A head is one file in compiler/heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.hiddens import Hiddens
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.graph.layer_graph import LayerGraph, Value
from multiway.runtime.answers import Answer
from multiway.specs.errors import Report, nearest, one_of
from multiway.specs.language.document import Head
from multiway.specs.language.inputs import Form
from multiway.specs.spec import Spec
from multiway.specs.text.source import Node


@dataclass(frozen=True, kw_only=True)
class HeadKind(Head):
    """A head that can declare its parameters and build its programs."""

    def declare(self, declared: Declared, path: str) -> None:
        """Adds the head's own parameters under `path`."""
        raise NotImplementedError

    def programs(self, spec: Spec) -> tuple[str, ...]:
        """Names of the programs, the main one first."""
        raise NotImplementedError

    def build(self, builder: Builder, program: str) -> LayerGraph:
        """Builds one of the programs."""
        raise NotImplementedError

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        """The inputs of the spec that this head reads."""
        raise NotImplementedError

    def answer(self, spec: Spec) -> Answer | None:
        """What the head predicts from files and texts; None: nothing."""
        return None

    # Helpers for the kinds

    def known_input(self, spec: Spec, name: str, node: Node, report: Report) -> bool:
        """Whether the spec has an input; adds a problem at `node` where it has not."""
        if name in spec.inputs:
            return True
        report.add(
            "unknown-input",
            f"{name!r} is not an input of this spec",
            span=node.span,
            expected=one_of(spec.inputs),
            nearest=nearest(name, spec.inputs),
        )
        return False

    def segments(self, builder: Builder, x: Value, seq: Hiddens) -> dict[str, Value]:
        """The part of every input in the output of the trunk."""
        names = [segment.name for segment in seq.segments]
        if seq.sizes is None:
            return {names[0]: x}
        path = f"heads.{builder.spec.head_name}.split"
        parts = builder.nodes(path, "split", {"x": x, "sizes": seq.sizes}, part=self)
        return dict(zip(names, parts, strict=True))


def text_input(spec: Spec, given: str | None) -> str | None:
    """The token input that a head reads: the one it names, else the first."""
    if given is not None:
        return given
    return next((name for name, each in spec.inputs.items() if each.form() == Form.TOKENS), None)


def require_text(head: Any, spec: Spec, name: str | None, report: Report, *, key: str) -> bool:
    """Adds a problem unless `name` is a token input."""
    node = head.node.get(key) or head.node
    if name is not None and not head.known_input(spec, name, node, report):
        return False
    if name is None or spec.inputs[name].form() != Form.TOKENS:
        what = "this spec has none" if name is None else f"{name!r} is not one"
        report.add("unknown-input", f"{head.kind} reads token ids; {what}", span=node.span)
        return False
    return True
