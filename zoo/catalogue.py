"""Reads the families: a folder each, with spec.yaml, sizes.yaml, weights.yaml and card.yaml.

A row of sizes.yaml is an entry: its name and the dims that differ. With a variants.yaml beside it,
a row is a size of every variant: `hc` and `12x512` make the entry `hc-12x512`, and a row of
variants.yaml is what that variant changes in the spec. A further YAML file in the folder is an
entry that changes more than numbers. Adding a model touches its folder only.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiway.specs.reading.merge import merge
from multiway.specs.spec import Spec
from multiway.specs.text.source import Node, read_file

FOLDER = Path(__file__).parent
_OTHER = {"spec", "sizes", "variants", "weights", "card"}


@dataclass(frozen=True)
class Entry:
    """A model of the zoo, as a document that `specs.load` takes."""

    name: str
    family: str
    document: Node
    variant: str | None = None  # the row of variants.yaml that it comes from

    @property
    def card(self) -> Mapping[str, Any]:
        """Paper, licence and origin of the family."""
        return read_file(FOLDER / self.family / "card.yaml").plain()  # type: ignore[no-any-return]


class Catalogue:
    """Every entry by name. Calling it resolves a name, as `specs.load` wants it."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.families = sorted(path.parent.name for path in folder.glob("*/spec.yaml"))
        self.bases = {str(self._base(f)["name"].value): f for f in self.families}
        self.entries = {entry.name: entry for f in self.families for entry in self._entries(f)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def __call__(self, name: str) -> Node | None:
        if name in self.entries:
            return self.entries[name].document
        return self._base(self.bases[name]) if name in self.bases else None

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def matching(self, pattern: str) -> list[Entry]:
        """Entries whose name or family matches a glob, or begins with the text. `NAME-*` is every
        size of a variant, where there is one of that name, and not what begins alike."""
        sizes = [entry for entry in self if entry.variant and f"{entry.variant}-*" == pattern]
        return sizes or [
            entry
            for entry in self
            if fnmatch.fnmatchcase(entry.name, pattern)
            or entry.name.startswith(pattern)
            or entry.family == pattern
        ]

    def weights(self, family: str) -> Mapping[str, Any]:
        """The rename table of a family as data."""
        return read_file(self.folder / family / "weights.yaml").plain()  # type: ignore[no-any-return]

    def family_of(self, spec: Spec) -> str | None:
        """The family that a spec's file stands in, or extends."""
        name = spec.origin
        entry = self.entries.get(name)
        return entry.family if entry else self.bases.get(name)

    @functools.cache  # noqa: B019 - one catalogue lives as long as the program
    def _base(self, family: str) -> Node:
        return read_file(self.folder / family / "spec.yaml")

    def _variants(self, family: str) -> Iterator[tuple[str | None, Node]]:
        """The names in variants.yaml and the family's spec with what each changes."""
        path, base = self.folder / family / "variants.yaml", self._base(family)
        if not path.exists():
            yield None, base
            return
        for name, change in read_file(path).value.items():
            yield name, merge(base, change)

    def _entries(self, family: str) -> Iterator[Entry]:
        folder = self.folder / family
        sizes = read_file(folder / "sizes.yaml")
        for variant, changed in self._variants(family):
            for size, row in sizes.value.items():
                name = f"{variant}-{size}" if variant else size
                text = Node(name, sizes.key_span(size), quoted=True)
                change = Node({"name": text, "dims": row}, row.span, sizes.keys)
                yield Entry(name, family, merge(changed, change), variant)
        for path in sorted(folder.glob("*.yaml")):
            if path.stem not in _OTHER:
                document = read_file(path)
                yield Entry(path.stem, family, document)


@functools.cache
def catalogue() -> Catalogue:
    """The zoo that comes with multiway."""
    return Catalogue()
