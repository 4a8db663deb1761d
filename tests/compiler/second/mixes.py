"""Mixes a second time: who reads, what, by which weights, and what becomes of the sum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from second.body import ACTIVATIONS, Body


@dataclass(frozen=True, kw_only=True)
class Site:
    """A sublayer or the output. `part` is empty for a parallel block, which is one sublayer."""

    layer: int
    sublayer: int
    part: str

    @property
    def is_output(self) -> bool:
        return self.part == "output"

    @property
    def opens_block(self) -> bool:
        return self.part != "ffn"

    @property
    def streams(self) -> str:
        return {"ffn": "xr", "output": "r"}.get(self.part, "qkvxr")

    def number(self, at: str) -> int:
        return self.layer if at == "block" else self.sublayer

    def path(self, at: str) -> str:
        if self.is_output:
            return "output"
        below = f".{self.part}" if at == "sublayer" and self.part else ""
        return f"blocks.{self.layer}{below}"


@dataclass(kw_only=True)
class Past:
    """What was there before: all lists begin with the embedding, but those of values."""

    hiddens: dict[str, list[Tensor]]
    changes: dict[str, list[Tensor]]
    values: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, embedding: Tensor) -> Past:
        lists = ({at: [embedding] for at in ("block", "sublayer")} for _ in range(2))
        return cls(hiddens=next(lists), changes=next(lists))


class Mixes:
    """The mixes of a spec's wiring: `mix`, then the edges in their order."""

    def __init__(self, body: Body) -> None:
        wiring = body.spec.wiring
        self.body, self.spec, self.params = body, body.spec, body.params
        self.all: list[tuple[str, Any]] = [("mix", wiring.mix)] if wiring.mix else []
        self.all += [(f"edges.{i}", edge) for i, edge in enumerate(wiring.edges)]

    # Who reads

    def ways(self, mix: Any, site: Site) -> list[str]:
        """The streams that a mix mixes at a site, in their order; none where it does not mix."""
        number = site.number(mix.at)
        if not site.opens_block and mix.at == "block":
            return []
        if number == 0 and not mix.first:
            return []
        if number % mix.period and not site.is_output:
            return []
        if mix.where is not None:
            names = {"layer": site.layer}
            if mix.at == "sublayer":
                names["sublayer"] = site.sublayer
            if not mix.where.test(**names):
                return []
        if "value" in mix.streams:
            return ["value"] if "q" in site.streams else []
        return [stream for stream in site.streams if stream in mix.streams]

    def three_norms(self, site: Site) -> bool:
        """Whether q, k and v of a site have a norm each."""
        of_inputs = [mix for _, mix in self.all if set("qkv") & set(mix.streams)]
        everywhere = any(mix.first_block == "three_norms" for mix in of_inputs)
        return everywhere or any(set("qkv") & set(self.ways(mix, site)) for mix in of_inputs)

    # What is read

    def sources(self, mix: Any, site: Site, past: Past) -> tuple[list[Tensor], list[int]]:
        """All that could be read, and the numbers of those that are."""
        number = site.number(mix.at)
        if "value" in mix.streams:
            found, shift, number = past.values, 0, site.layer
        elif mix.of == "hidden":
            found, shift = past.hiddens[mix.at], 1
        else:
            found, shift = grouped(past.changes[mix.at], mix.group, mix.partial), 1
        newest = len(found) - 1
        assert newest == number or mix.group > 1
        if not mix.sources:
            return found, [j for j in range(newest + 1) if (newest - j) % mix.dilation == 0]
        names = {"layer": site.layer, "embedding": -1, "newest": newest - shift}
        if mix.at == "sublayer":
            names["sublayer"] = site.sublayer
        return found, sorted({int(each.number(**names)) + shift for each in mix.sources})

    # By which weights

    def weights(self, path: str, mix: Any, site: Site, past: Past) -> Tensor:
        """Static, generated and fixed weights [B, T, ways, sources]."""
        ways, (found, read) = self.ways(mix, site), self.sources(mix, site, past)
        newest = past.hiddens[mix.at][-1]
        made = torch.zeros(*found[0].shape[:2], len(ways), len(read), dtype=found[0].dtype)
        if mix.fixed is not None:
            made = made + mix.fixed.number(sources=len(read))
        if mix.static is not None:
            static = self.params[f"{path}.static"]
            if mix.static.complement:
                static = torch.cat([1 - static, static])
            elif mix.static.columns == "all":
                static = static[:, read]
            made = made + static
        if mix.generator is not None:
            made = made + self.generated(path, mix.generator, newest).reshape(made.shape)
        return made

    def generated(self, path: str, generator: Any, newest: Tensor) -> Tensor:
        base = self.spec.blocks[0].norm
        if generator.norm is None:
            x = newest / ((newest**2).mean(-1, keepdim=True) + base.eps).sqrt()
        else:
            x = self.body.normed(f"{path}.norm", generator.norm, newest, base)
        x = ACTIVATIONS[generator.activation](self.body.matrix(f"{path}.hidden", x))
        return self.body.matrix(f"{path}.output", x)

    def routed(self, path: str, router: Any, sources: list[Tensor]) -> Tensor:
        """The average [B, T, D] of a router: a softmax over sources for each group."""
        eps = self.spec.blocks[0].norm.eps if router.eps is None else router.eps
        asked = self.params[f"{path}.query"] * self.params.get(f"{path}.weight", 1.0)
        scores = []
        for source in sources:
            product = asked * source / ((source**2).mean(-1, keepdim=True) + eps).sqrt()
            scores.append(product.unflatten(-1, (router.groups, -1)).sum(-1, keepdim=True))
        odds = [(score - torch.stack(scores).amax(0)).exp() for score in scores]
        whole = torch.stack(odds).sum(0)
        parts = [
            odd / whole * source.unflatten(-1, (router.groups, -1))
            for odd, source in zip(odds, sources, strict=True)
        ]
        return torch.stack(parts).sum(0).flatten(-2)

    # What becomes of the sums

    def sums(self, name: str, mix: Any, site: Site, past: Past) -> dict[str, Tensor]:
        """The finished sum of every stream that the mix mixes at a site."""
        path, ways = f"{site.path(mix.at)}.{name}", self.ways(mix, site)
        all_sources, read = self.sources(mix, site, past)
        sources = [self.source(name, mix, j, all_sources[j]) for j in read]
        if mix.router is not None:
            several = "" if len(ways) == 1 else "."
            routers = [f"{path}.router{several}{way if several else ''}" for way in ways]
            found = [self.routed(router, mix.router, sources) for router in routers]
        else:
            weights = self.weights(path, mix, site, past)
            found = [
                torch.stack([weights[:, :, i, j, None] * x for j, x in enumerate(sources)]).sum(0)
                for i in range(len(ways))
            ]
        return {
            way: self.finished(f"{path}.{{}}.{way}", mix, way, x)
            for way, x in zip(ways, found, strict=True)
        }

    def source(self, name: str, mix: Any, j: int, x: Tensor) -> Tensor:
        if mix.source_norm is None:
            return x
        before = "" if name == "mix" else f"{name}."
        path = f"{before}history.{j}.norm"
        return self.body.normed(path, mix.source_norm, x, self.spec.blocks[0].norm)

    def finished(self, path: str, mix: Any, way: str, x: Tensor) -> Tensor:
        if mix.sum_norm is not None and way in mix.sum_norm.streams:
            base = self.spec.blocks[0].norm
            x = self.body.normed(path.format("sum_norm"), mix.sum_norm, x, base)
        return x if mix.gate is None else self.params[path.format("gate")] * x

    # All of them

    def streams(self, site: Site, hidden: Tensor, past: Past) -> dict[str, Tensor]:
        """What a site reads as q, k, v, x and r, where all would read `hidden` without a mix."""
        found = dict.fromkeys("qkvxr", hidden)
        for name, mix in self.all:
            if "value" in mix.streams or not self.ways(mix, site):
                continue
            before = dict(found)
            sums = self.sums(name, mix, site, past)
            made = {way: (before[way] + x) if mix.add else x for way, x in sums.items()}
            for leader, followers in (("r", "qkvx"), ("x", "qkv")):
                for follower in followers if leader in made else "":
                    if before[follower] is before[leader]:
                        found[follower] = made[leader]
            found |= made
        return found

    def value(self, site: Site, own: Tensor, past: Past) -> Tensor:
        """The projected value of a site's block, mixed; `past.values` ends with its own."""
        for name, mix in self.all:
            if "value" in mix.streams and self.ways(mix, site):
                mixed = self.sums(name, mix, site, past)["value"]
                own = own + mixed if mix.add else mixed
        return own


def grouped(changes: list[Tensor], size: int, partial: bool) -> list[Tensor]:
    """The embedding, then sums of `size` changes; the last may be unfinished."""
    found, (embedding, *rest) = [], changes
    for start in range(0, len(rest), size):
        group = rest[start : start + size]
        if len(group) == size or partial:
            found.append(torch.stack(group).sum(0))
    return [embedding, *found]
