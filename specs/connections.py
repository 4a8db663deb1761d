"""Who reads what: the places of a model where a wiring acts, and the sources of each mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from multiway.specs.errors import MultiwayError
from multiway.specs.language.wiring import Mix

if TYPE_CHECKING:
    from multiway.specs.language.fields import Formula
    from multiway.specs.spec import Spec

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


def sites(spec: Spec) -> tuple[Site, ...]:
    """Every sublayer in order, then the output."""
    parts: list[tuple[int, Part]] = []
    for layer, block in enumerate(spec.blocks):
        parallel = block.order == "parallel"
        parts += [(layer, "both")] if parallel else [(layer, "attention"), (layer, "ffn")]
    parts.append((spec.depth, "output"))
    return tuple(Site(index=i, layer=layer, part=part) for i, (layer, part) in enumerate(parts))


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


def reading(spec: Spec, name: str, mix: Mix, site: Site) -> Reading | None:
    """What a site reads by a mix, or None. Raises MultiwayError for sources that do not exist."""
    if mix.at == "block" and not site.opens:
        return None
    values, last = "value" in mix.streams, site.part == "output"
    index = site.layer if mix.at == "block" or values else site.index
    ways = _ways(mix, site)
    off_beat = index % mix.period != 0 and not last
    if not ways or off_beat or (index == 0 and not mix.first):
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


def readings(spec: Spec) -> Iterator[tuple[Site, str, Mix, Reading]]:
    """Every reading of every mix, site by site."""
    for site in sites(spec):
        for name, mix in spec.wiring.mixes():
            found = reading(spec, name, mix, site)
            if found is not None:
                yield site, name, mix, found


def read_sources(spec: Spec, name: str, mix: Mix) -> tuple[int, ...]:
    """Every source that some reader of a mix reads."""
    found = {
        source
        for site in sites(spec)
        if (each := reading(spec, name, mix, site)) is not None
        for source in each.sources
    }
    return tuple(sorted(found))


def split_norms(spec: Spec, site: Site) -> bool:
    """Whether the query, key and value inputs of a block are normed apart."""
    if site.part not in ("attention", "both"):
        return False
    for name, mix in spec.wiring.mixes():
        if not set("qkv") & set(mix.streams):
            continue
        here = reading(spec, name, mix, site)
        if here is not None or mix.first_block == "three_norms":
            return True
    return False
