"""Who reads what: the places of a model where a wiring acts, and the sources of each mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from multiway.specs.errors import MultiwayError
from multiway.specs.language.block import Block
from multiway.specs.language.fields import Formula
from multiway.specs.language.wiring import Mix, Wiring

Part = Literal["attention", "ffn", "both", "output"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A sublayer, or the output. A block with `order: parallel` is one sublayer, of two parts."""

    index: int  # among the sublayers; the output comes last
    layer: int  # its block; the depth for the output
    part: Part

    @property
    def block(self) -> str:
        return "output" if self.part == "output" else f"blocks.{self.layer}"

    @property
    def path(self) -> str:
        """What its parameters stand under."""
        return f"{self.block}.{self.part}" if self.part in ("attention", "ffn") else self.block

    @property
    def opens(self) -> bool:
        """Whether its block begins here. The output counts as one more block."""
        return self.part != "ffn"

    @property
    def closes(self) -> bool:
        return self.part in ("ffn", "both")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reader of a mix. Sources are numbered from 0, the embedding (of projected values: the
    first block's); `sources` are those that it reads, of the `known` that exist."""

    path: str  # what its parameters stand under
    index: int  # among the readers
    ways: tuple[str, ...]
    sources: tuple[int, ...]
    known: int
    last: bool


class Connections:
    """Who reads what over the depth of a model. What nobody asks for is not worked out."""

    def __init__(self, blocks: Sequence[Block], wiring: Wiring) -> None:
        self._blocks, self._mixes = blocks, dict(wiring.mixes())
        self._readings: dict[str, tuple[Reading | None, ...]] = {}  # by mix, one for each site

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every sublayer in order, then the output."""
        return _sites(self._blocks)

    def readings(self, name: str) -> tuple[Reading | None, ...]:
        """What each site reads by a mix. Raises MultiwayError for sources that do not exist.

        name: that of the mix, as `Wiring.mixes` gives it.
        """
        if name not in self._readings:
            mix = self._mixes[name]
            self._readings[name] = tuple(_reading(name, mix, site) for site in self.sites)
        return self._readings[name]

    def reading(self, name: str, site: Site) -> Reading | None:
        """What a site reads by the mix of a name, or None. Raises as `readings` does."""
        return self.readings(name)[site.index]

    def sources(self, name: str) -> tuple[int, ...]:
        """Every source that some reader of a mix reads. Raises as `readings` does."""
        found = {source for each in self.readings(name) if each for source in each.sources}
        return tuple(sorted(found))

    def split_norms(self, site: Site) -> bool:
        """Whether the query, key and value inputs of a block are normed apart."""
        if site.part not in ("attention", "both"):
            return False
        return any(
            mix.first_block == "three_norms" or self.reading(name, site) is not None
            for name, mix in self._mixes.items()
            if set("qkv") & set(mix.streams)
        )


def _sites(blocks: Sequence[Block]) -> tuple[Site, ...]:
    parts: list[tuple[int, Part]] = []
    for layer, block in enumerate(blocks):
        parallel = block.order == "parallel"
        parts += [(layer, "both")] if parallel else [(layer, "attention"), (layer, "ffn")]
    parts.append((len(blocks), "output"))
    return tuple(Site(index=i, layer=layer, part=part) for i, (layer, part) in enumerate(parts))


def _reading(name: str, mix: Mix, site: Site) -> Reading | None:
    """What a site reads by a mix, or None. Raises MultiwayError for sources that do not exist."""
    if mix.at == "block" and not site.opens:
        return None
    values, last = "value" in mix.streams, site.part == "output"
    index = site.layer if mix.at == "block" or values else site.index
    ways = _ways(mix, site)
    skipped = index % mix.period != 0 and not last
    if not ways or skipped or (index == 0 and not mix.first):
        return None
    names = {"layer": site.layer, **({"sublayer": site.index} if mix.at == "sublayer" else {})}
    if mix.where is not None and not mix.where.test(**names):
        return None
    known = _known(mix, index, values)
    if mix.sources:
        found = _listed(mix, known, names, values)
    else:
        found = tuple(i for i in range(known) if (known - 1 - i) % mix.dilation == 0)
    path = f"{site.block if mix.at == 'block' else site.path}.{name}"
    return Reading(path=path, index=index, ways=ways, sources=found, known=known, last=last)


def _ways(mix: Mix, site: Site) -> tuple[str, ...]:
    able = {"attention": "qkvxr", "both": "qkvxr", "ffn": "xr", "output": "r"}[site.part]
    if "value" in mix.streams:
        return ("value",) if site.part in ("attention", "both") else ()
    return tuple(stream for stream in "qkvxr" if stream in mix.streams and stream in able)


def _known(mix: Mix, index: int, values: bool) -> int:
    """How many sources there are when reader `index` reads."""
    if mix.of == "hidden" or values:
        return index + 1
    finished, rest = divmod(index, mix.group)
    return 1 + finished + (1 if mix.partial and rest else 0)


def _listed(mix: Mix, known: int, names: dict[str, int], values: bool) -> tuple[int, ...]:
    """The sources that formulas name, each once, the newest last."""
    shift = 0 if values else 1  # the embedding is number -1 to an author, and 0 here
    newest = known - 1 - shift
    found: set[int] = set()
    for formula in mix.sources:
        number = formula.whole(newest=newest, embedding=-1, **names)
        if not -shift <= number <= newest:
            raise _no_source(formula, number, newest, values, names)
        found.add(number + shift)
    return tuple(sorted(found))


def _no_source(
    formula: Formula, number: int, newest: int, values: bool, names: dict[str, int]
) -> MultiwayError:
    what = "sublayer" if "sublayer" in names else "block"
    reader = names["sublayer"] if what == "sublayer" else names["layer"]
    first = "0" if values else "embedding (-1)"
    future = number > newest
    return MultiwayError.one(
        "future-source" if future else "unknown-source",
        f"{what} {reader} cannot read {what} {number}, which comes "
        + ("not before it" if future else "before everything"),
        span=formula.node.span,
        expected=f"{first} to {newest}, which is `newest` there, or a `where` that leaves it out",
        notes=(("reader", f"{what} {reader}"),),
    )
