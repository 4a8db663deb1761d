"""The trunk a second time: blocks, what they read, and how their outputs join what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import multiway as mw
from second.body import Body
from second.lanes import Lanes
from second.mixes import Mixes, Past, Site


class Second:
    """The trunk over some inputs. `values`: inputs by name, and `NAME_padding`, `NAME_masked`."""

    def __init__(self, spec: mw.Spec, params: Mapping[str, Tensor], names: list[str]) -> None:
        self.spec, self.params, self.wiring = spec, params, spec.wiring
        self.body = Body(spec, params, names)
        self.mixes = Mixes(self.body)

    def __call__(self, values: Mapping[str, Any]) -> Tensor:
        embedding = self.body.opened(values)
        past = Past.of(embedding)
        x = self.of_blocks(embedding, past) if self.wiring.lanes is None else None
        x = self.of_lanes(embedding, past) if x is None else x
        norm = self.spec.output.norm
        return x if norm is None else self.body.norm("output.norm", norm, x, self.base)

    @property
    def base(self) -> Any:
        return self.spec.blocks[0].norm

    def sites(self) -> list[list[Site]]:
        """The sublayers of every block, and at last the output."""
        found, count = [], 0
        for layer, block in enumerate(self.spec.blocks):
            parts = [""] if block.order == "parallel" else ["attention", "ffn"]
            found.append(
                [Site(layer=layer, sublayer=count + i, part=p) for i, p in enumerate(parts)]
            )
            count += len(parts)
        return [*found, [Site(layer=self.spec.depth, sublayer=count, part="output")]]

    def of_blocks(self, embedding: Tensor, past: Past) -> Tensor:
        hidden = embedding
        *blocks, (output,) = self.sites()
        for sites in blocks:
            changes = []
            for site in sites:
                streams = self.mixes.streams(site, hidden, past)
                change = self.put_out(site, streams, past)
                hidden = self.joined(site, streams["r"], change)
                past.hiddens["sublayer"] = [*past.hiddens["sublayer"], hidden]
                past.changes["sublayer"] = [*past.changes["sublayer"], change]
                changes.append(change)
            past.hiddens["block"] = [*past.hiddens["block"], hidden]
            past.changes["block"] = [*past.changes["block"], torch.stack(changes).sum(0)]
        return self.mixes.streams(output, hidden, past)["r"]

    def of_lanes(self, embedding: Tensor, past: Past) -> Tensor:
        kept = Lanes(self.body)
        lanes, (*blocks, _) = kept.opened(embedding), self.sites()
        for sites in blocks:
            if kept.lanes.at == "block":

                def whole(u: Tensor, sites: list[Site] = sites) -> Tensor:
                    hidden = u
                    for site in sites:
                        hidden = hidden + self.put_out(site, dict.fromkeys("qkvxr", hidden), past)
                    return hidden - u

                lanes = kept.around(f"blocks.{sites[0].layer}.lanes", lanes, whole)
                continue
            for site in sites:

                def one(u: Tensor, site: Site = site) -> Tensor:
                    return self.put_out(site, dict.fromkeys("qkvxr", u), past)

                lanes = kept.around(f"{site.path('sublayer')}.lanes", lanes, one)
        return kept.closed(lanes)

    # One sublayer

    def put_out(self, site: Site, streams: Mapping[str, Tensor], past: Past) -> Tensor:
        """What a sublayer adds: its output, behind the norm of it, times its gain."""
        found = []
        if site.part != "ffn":
            found.append(self.attention(site, streams, past))
        if site.part != "attention":
            x = self.input_normed(site.layer, "ffn", "norm", streams["x"])
            found.append(self.output_normed(site.layer, "ffn", self.body.ffn(site.layer, x)))
        gain = self.params.get(f"{site.path('sublayer')}.residual.gain", 1.0)
        return gain * torch.stack(found).sum(0)

    def attention(self, site: Site, streams: Mapping[str, Tensor], past: Past) -> Tensor:
        layer, three = site.layer, self.mixes.three_norms(site)
        inputs = {
            stream: self.input_normed(
                layer, "attention", f"norm.{stream}" if three else "norm", streams[stream]
            )
            for stream in "qkv"
        }
        projected = self.body.projected(layer, inputs)
        past.values = [*past.values, projected["value"]]
        projected["value"] = self.mixes.value(site, projected["value"], past)
        return self.output_normed(layer, "attention", self.body.attention(layer, projected))

    def input_normed(self, layer: int, part: str, name: str, x: Tensor) -> Tensor:
        return self.body.block_norm(layer, part, name, x) if "input" in self.wiring.norms else x

    def output_normed(self, layer: int, part: str, y: Tensor) -> Tensor:
        if "output" not in self.wiring.norms:
            return y
        return self.body.block_norm(layer, part, "output_norm", y)

    def joined(self, site: Site, hidden: Tensor, change: Tensor) -> Tensor:
        """The residual stream behind a sublayer: b (keep h + h A B) + a gain y, and its norm."""
        residual, path = self.wiring.residual, f"{site.path('sublayer')}.residual"
        kept, a, b = hidden, torch.tensor(1.0), torch.tensor(1.0)
        if residual is not None and residual.keep is not None:
            kept = residual.keep.number(layer=site.layer) * kept
        if residual is not None and residual.low_rank is not None:
            kept = kept + self.body.matrix(f"{path}.up", self.body.matrix(f"{path}.down", hidden))
        if residual is not None and residual.balance:
            a, b = 2 * self.params[f"{path}.balance"].softmax(0)
        found = b * kept + a * change
        if "sum" not in self.wiring.norms:
            return found
        return self.body.block_norm(site.layer, site.part, "sum_norm", found)
