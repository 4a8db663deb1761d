"""Reads the families: a folder each, with spec.yaml, sizes.yaml, weights.yaml and card.yaml.

A row of sizes.yaml is an entry: its name and the dims that differ. With a variants.yaml beside it,
a row is a size of every variant: `hc` and `12x512` make the entry `hc-12x512`, and a row of
variants.yaml is what that variant changes in the spec. A further YAML file in the folder is an
entry that changes more than numbers. Adding a model touches its folder only.

Families stand in this folder, and in `families` of each data folder of the user.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiway.specs.data_folders import OWN, DataFolder, data_folders, refuse_twice
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
    folder: Path
    origin: str  # multiway, or who named the data folder that it stands in
    variant: str | None = None  # the row of variants.yaml that it comes from

    @property
    def card(self) -> Mapping[str, Any]:
        """Paper and licence of the family; where its released files are. Empty without a card."""
        path = self.folder / "card.yaml"
        return read_file(path).plain() if path.exists() else {}


class Catalogue:
    """Every entry by name. Calling it resolves a name, as `specs.load` wants it."""

    def __init__(self, data: Sequence[DataFolder] = ()) -> None:
        self.families: dict[str, DataFolder] = {}
        self.bases: dict[str, str] = {}
        self.entries: dict[str, Entry] = {}
        self._base = functools.cache(lambda family: self._read(family, "spec.yaml"))
        own = [DataFolder(each.path / "families", each.origin) for each in data]
        for folder in (DataFolder(FOLDER, OWN), *own):
            for path in sorted(folder.path.glob("*/spec.yaml")):
                self._add(DataFolder(path.parent, folder.origin))

    def _add(self, folder: DataFolder) -> None:
        """Adds a family. Raises MultiwayError where a name of it is taken."""
        family = folder.path.name
        refuse_twice("family", family, folder.path, {f: d.path for f, d in self.families.items()})
        self.families[family] = folder
        name = self._base(family).get("name")
        base = family if name is None else str(name.value)
        homes = {name: entry.folder for name, entry in self.entries.items()}
        homes |= {name: self.families[f].path for name, f in self.bases.items()}
        refuse_twice("spec", base, folder.path, homes)
        self.bases[base] = family
        for entry in self._entries(family):
            refuse_twice("spec", entry.name, folder.path, homes)
            self.entries[entry.name] = entry

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
        return self._read(family, "weights.yaml").plain()  # type: ignore[no-any-return]

    def family_of(self, spec: Spec) -> str | None:
        """The family that a spec's file stands in, or extends."""
        name = spec.origin
        entry = self.entries.get(name)
        return entry.family if entry else self.bases.get(name)

    def _read(self, family: str, name: str) -> Node:
        return read_file(self.families[family].path / name)

    def _variants(self, family: str) -> Iterator[tuple[str | None, Node]]:
        """The names in variants.yaml and the family's spec with what each changes."""
        path, base = self.families[family].path / "variants.yaml", self._base(family)
        if not path.exists():
            yield None, base
            return
        for name, change in read_file(path).value.items():
            yield name, merge(base, change)

    def _entries(self, family: str) -> Iterator[Entry]:
        folder, origin = self.families[family].path, self.families[family].origin
        sizes = self._read(family, "sizes.yaml")
        for variant, changed in self._variants(family):
            for size, row in sizes.value.items():
                name = f"{variant}-{size}" if variant else size
                text = Node(name, sizes.key_span(size), quoted=True)
                change = Node({"name": text, "dims": row}, row.span, sizes.keys)
                yield Entry(name, family, merge(changed, change), folder, origin, variant)
        for path in sorted(folder.glob("*.yaml")):
            if path.stem not in _OTHER:
                document = read_file(path)
                yield Entry(path.stem, family, document, folder, origin)


def catalogue() -> Catalogue:
    """The zoo that comes with multiway, and the families of the user's data folders."""
    data = data_folders()
    files = [path for each in data for path in each.path.glob("families/*/*.yaml")]
    return _catalogue(data, tuple((path, path.stat().st_mtime_ns) for path in sorted(files)))


@functools.lru_cache(maxsize=4)
def _catalogue(data: tuple[DataFolder, ...], _: tuple[tuple[Path, int], ...]) -> Catalogue:
    """The catalogue while no file of the data folders changes, as a notebook's user may do."""
    return Catalogue(data)
