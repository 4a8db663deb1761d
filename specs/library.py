"""What the names in a spec stand for. Whoever loads specs hands it in: the language knows none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from multiway.specs.data_folders import wiring_files
from multiway.specs.language.fields import Kinds
from multiway.specs.language.parts import ACTIVATIONS
from multiway.specs.text.source import Node


class Specs(Protocol):
    """Specs by name, as the zoo has them."""

    @property
    def names(self) -> Sequence[str]:
        """Those that an error may offer."""

    def __call__(self, name: str) -> Node | None:
        """The document of a name, or None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """Names that a spec may use.

    heads: the kinds of heads. activations: functions of every element. specs: what `extends` and
    `load` find by name. wirings: the file of each named wiring.
    """

    heads: Kinds
    specs: Specs
    activations: tuple[str, ...] = ACTIVATIONS
    wirings: Mapping[str, Path] = field(default_factory=wiring_files)
