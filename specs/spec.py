"""A spec: data, and what one asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from multiway.specs.connections import Connections
from multiway.specs.data_folders import WIRINGS
from multiway.specs.errors import MultiwayError, Problem, nearest, one_of
from multiway.specs.language.block import Block
from multiway.specs.language.document import Head, Output
from multiway.specs.language.fields import Kinds
from multiway.specs.language.inputs import Embed, Form, Input, Learned
from multiway.specs.language.parts import Initial
from multiway.specs.language.wiring import Wiring
from multiway.specs.text.source import Node


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Spec:
    """A checked spec. Values are those of one head when `head_name` is set, else of no head."""

    name: str
    tree: Node
    dims: Mapping[str, float]  # by name; whole numbers are ints
    inputs: Mapping[str, Input]
    embed: Mapping[str, Embed]
    blocks: tuple[Block, ...]
    wiring: Wiring
    output: Output
    heads: Mapping[str, Head]
    init: Mapping[str, Initial]
    connections: Connections
    kinds: Kinds
    origin: str = ""  # the zoo entry that it is, or extends
    wiring_file: str = ""  # where its named wiring stands
    warnings: tuple[Problem, ...] = ()
    head_name: str = ""
    by_head: Mapping[str, Spec] = field(default_factory=dict)  # as each has it; load fills it

    def __repr__(self) -> str:
        heads = f"head {self.head_name}" if self.head_name else f"heads {', '.join(self.heads)}"
        size = f"{self.depth} blocks of width {self.width}"
        return f"Spec({self.name}: {size}, {heads})"

    @property
    def depth(self) -> int:
        return int(self.dims["depth"])

    @property
    def width(self) -> int:
        return int(self.dims["width"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Every modality, in the order in which the inputs name them."""
        return tuple(dict.fromkeys(each.modality for each in self.inputs.values()))

    @property
    def head(self) -> Head:
        return self.heads[self.head_name]

    def for_head(self, name: str | None = None) -> Spec:
        """The spec as one head has it: its dims, its output norm. None: the only head.

        Raises MultiwayError when there is no such head, or when several could be meant.
        """
        name = self.pick(name)
        return self if name == self.head_name else self.by_head[name]

    def pick(self, name: str | None) -> str:
        """The name of the head that is meant."""
        if name is None and len(self.heads) == 1:
            return next(iter(self.heads))
        if name is None or name not in self.heads:
            what = f"{self.name} has no head {name!r}" if name else f"{self.name} has several heads"
            raise MultiwayError.one(
                "unknown-head",
                what,
                place=self.name,
                expected=one_of(self.heads),
                nearest=nearest(name or "", self.heads),
            )
        return name

    def learned_rows(self, modality: str) -> int:
        """Rows of the learned position table of a modality, its offset included."""
        position = self.embed[modality].position
        assert isinstance(position, Learned)
        if position.rows is not None:
            return position.rows
        longest = max(self.tokens_of(name) or 0 for name in self.inputs_of(modality))
        return longest + position.offset

    def inputs_of(self, modality: str) -> tuple[str, ...]:
        return tuple(n for n, each in self.inputs.items() if each.modality == modality)

    def tokens_of(self, name: str) -> int | None:
        """Tokens that an input becomes: exact for an image, the most for others, None: no limit."""
        each = self.inputs[name]
        embed = self.embed.get(each.modality)
        if each.form() == Form.IMAGE:
            assert each.size is not None and embed is not None and embed.patch is not None
            return (each.size // embed.patch.size) ** 2 + (1 if embed.cls else 0)
        position = embed.position if embed else None
        if each.context is not None or position is None or position.rows is None:
            return each.context
        return position.rows - position.offset

    def text(self) -> str:
        """The merged spec as YAML: what a compiled model was made from. It needs no other file, and
        no wiring but those of multiway."""
        plain = {"multiway": 1, **self.tree.plain()}
        plain.pop("extends", None)
        if not (WIRINGS / f"{self.wiring.use}.yaml").is_file():
            plain["wiring"]["use"] = None
        return yaml.safe_dump(plain, sort_keys=False, width=100)
