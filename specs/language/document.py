"""A whole spec: its keys, its output, its heads.

specs/LANGUAGE.md explains the language; `multiway schema` prints it as a JSON Schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from multiway.specs.errors import Report
from multiway.specs.language.block import Block, Layers
from multiway.specs.language.fields import Config, Count, Formula, Real, key
from multiway.specs.language.inputs import Embed, Input, Preprocess
from multiway.specs.language.parts import Initial, Norm
from multiway.specs.language.wiring import Wiring


@dataclass(frozen=True, kw_only=True)
class Output(Config):
    """What follows the last block."""

    norm: Norm | None = key("the final norm")


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

    def check_spec(self, spec: Any, report: Report) -> None:
        """Adds what does not fit between this head and its Spec. Head kinds override.

        spec: of the class Spec, which is made of documents and so is not known here.
        """


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
