"""Names of parameters in other people's files, from a table of zoo/<family>/weights.yaml.

    vars:     names that stand for one of several texts: `way: {vision: A, text: B}`
    names:    ours -> theirs; `{way}` matches a key and is replaced by its value, `{i}` matches a
              number; behind the arrow `{i-1}` and dims such as `{depth-1}` may be used
    stacked:  several of ours, laid on top of one another, are one of theirs; with `groups: heads`
              (a number or a dim) they alternate, one part of each for every head. `along: columns`
              lays them side by side, `along: new` one behind the other on a new first axis.
              `each: {i: depth}` lets {i} run over all blocks instead of being a part of the name.
              The result may have its last two axes exchanged (`transpose: true`) or be one row of
              numbers (`flat: true`).
    entries:  one of ours is a stack of several of theirs, an expert each: `each: {e: experts}` lets
              {e} in theirs run over the first axis of ours, which is as long as that dim says.
              `without` has patterns of ours that are no stacks
    scalars:  patterns of ours that are a single number in theirs, with no axis, where ours has [1]
    ignore:   patterns of theirs that nothing reads

`{2*i+1}` works out a number. `when:` limits an entry to specs with that wiring, or one of several;
what runs over a dim is for specs that have it.
Both directions follow from one table.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_VARIABLE = re.compile(r"\{(?:(\d+)\*)?(\w+)(?:([+-])(\d+))?\}")


@dataclass(frozen=True)
class Pair:
    """One foreign tensor and the parameters that it holds, one below the other in every group."""

    ours: tuple[str, ...]
    theirs: str
    groups: int = 1  # e.g. heads, where each head has its query, key and value rows together
    along: str = "rows"  # columns: side by side; new: along a new first axis
    transpose: bool = False  # theirs has the last two axes exchanged
    flat: bool = False  # theirs is one row of numbers
    entry: int | None = None  # theirs is this one of the first axis of ours
    scalar: bool = False  # where ours is [1], theirs has no axis

    @property
    def plain(self) -> bool:
        """Whether theirs is one parameter of ours as it is."""
        changed = self.transpose or self.flat or self.entry is not None
        return len(self.ours) == 1 and self.along != "new" and not changed


class RenameTable:
    """The table of a family, for one spec. `facts` are its dims and the name of its wiring."""

    def __init__(self, data: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.doc = str(data.get("doc", ""))
        self.unwrap = tuple(data.get("unwrap", ()))
        self.vars = {
            name: values if isinstance(values, dict) else {v: v for v in values}
            for name, values in data.get("vars", {}).items()
        }
        self.stacked = [entry for entry in data.get("stacked", ()) if self._holds(entry)]
        self.entries = [entry for entry in data.get("entries", ()) if self._holds(entry)]
        self.names = dict(data["names"])
        self.scalars = tuple(data.get("scalars", ()))
        self.ignored = [
            pattern
            for entry in data.get("ignore", ())
            if self._holds(entry)
            for pattern in entry["names"]
        ]

    def _holds(self, entry: Mapping[str, Any]) -> bool:
        dims = entry.get("each", {}).values()
        return all(dim in self.facts for dim in dims if isinstance(dim, str)) and all(
            self.facts.get(name) in (values if isinstance(values, list) else [values])
            for name, values in entry.get("when", {}).items()
        )

    def ignores(self, theirs: str) -> bool:
        """Whether a foreign tensor may be left unread."""
        return any(fnmatch.fnmatchcase(theirs, pattern) for pattern in self.ignored)

    def is_of(self, theirs: str, ours: tuple[str, ...]) -> bool:
        """Whether a foreign name is what some parameter of ours beginning with `ours` is called."""
        names = [*self.names.items(), *((e["ours"], e["theirs"]) for e in self.entries)]
        return any(
            fnmatch.fnmatchcase(theirs, _VARIABLE.sub("*", foreign))
            for name, foreign in names
            if name.startswith(ours)
        )

    def pairs(self, ours: Iterable[str]) -> tuple[list[Pair], list[str]]:
        """Foreign tensors for our parameters, and those of ours that the table does not know."""
        found: dict[str, Pair] = {}
        unknown = []
        for path in ours:
            several = self._entries(path)
            if not several and (pair := self._stack(path) or self._single(path)) is not None:
                several = [pair]
            if not several:
                unknown.append(path)
            found |= {pair.theirs: pair for pair in several}
        return [self._marked(pair) for pair in found.values()], unknown

    def _marked(self, pair: Pair) -> Pair:
        """The pair, which knows whether its numbers have an axis in theirs."""
        scalar = any(fnmatch.fnmatchcase(pair.ours[0], pattern) for pattern in self.scalars)
        return dataclasses.replace(pair, scalar=True) if scalar else pair

    def _entries(self, path: str) -> list[Pair]:
        """A pair for each of theirs that a parameter is a stack of."""
        for table in self.entries:
            bound = self._match(table["ours"], path)
            if bound is None or any(fnmatch.fnmatchcase(path, p) for p in table.get("without", ())):
                continue
            ((name, count),) = table["each"].items()
            numbers = range(int(self.facts.get(count, count)))
            return [
                Pair((path,), self._foreign(table["theirs"], {**bound, name: str(i)}), entry=i)
                for i in numbers
            ]
        return []

    def _stack(self, path: str) -> Pair | None:
        for entry in self.stacked:
            for pattern in entry["ours"]:
                bound = self._match(pattern, path)
                if bound is not None:
                    return self._stacked_pair(entry, bound)
        return None

    def _stacked_pair(self, entry: Mapping[str, Any], bound: Mapping[str, str]) -> Pair:
        turns: list[dict[str, Any]] = [dict(bound)]
        for name, count in entry.get("each", {}).items():
            numbers = range(int(self.facts.get(count, count)))
            turns = [{**turn, name: number} for number in numbers for turn in turns]
        return Pair(
            tuple(_fill(each, turn, {}) for turn in turns for each in entry["ours"]),
            self._foreign(entry["theirs"], bound),
            int(self.facts.get(entry.get("groups", ""), entry.get("groups", 1))),
            entry.get("along", "rows"),
            bool(entry.get("transpose", False)),
            bool(entry.get("flat", False)),
        )

    def _single(self, path: str) -> Pair | None:
        for pattern, theirs in self.names.items():
            bound = self._match(pattern, path)
            if bound is not None:
                return Pair((path,), self._foreign(theirs, bound))
        return None

    def _match(self, pattern: str, path: str) -> dict[str, str] | None:
        """What the variables of a pattern stand for in a path of ours, None: no match."""
        parts = [
            self._choice(text) if i % 2 else re.escape(text)
            for i, text in enumerate(re.split(r"\{(\w+)\}", pattern))
        ]
        match = re.fullmatch("".join(parts), path)
        return match.groupdict() if match else None

    def _choice(self, name: str) -> str:
        options = "|".join(map(re.escape, self.vars[name])) if name in self.vars else r"\d+"
        return f"(?P<{name}>{options})"

    def _foreign(self, theirs: str, bound: Mapping[str, str]) -> str:
        values: dict[str, Any] = {**self.facts, **bound}
        for name, value in bound.items():
            if name in self.vars:
                values[name] = self.vars[name][value]
        return _fill(theirs, values, self.facts)


def _fill(text: str, values: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    def one(match: re.Match[str]) -> str:
        factor, name, sign, shift = match.groups()
        value = values.get(name, facts.get(name))
        if not (factor or sign):
            return str(value)
        return str(int(factor or 1) * int(value) + int(f"{sign or ''}{shift or 0}"))

    return _VARIABLE.sub(one, text)
