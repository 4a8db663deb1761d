"""Inputs, norms, attention and feed-forward parts a second time.

Tokens are never split by modality: every way is run on all tokens, and each token keeps the result
of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import multiway as mw
from second.routers import Run, Stacks, gates

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * torch.sigmoid(x),
    "relu": lambda x: x.clamp(min=0),
    "relu_squared": lambda x: x.clamp(min=0) ** 2,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Body:
    """What is inside embeddings, norms, attention and feed-forward parts of a spec."""

    def __init__(self, spec: mw.Spec, params: Mapping[str, Tensor], names: list[str]) -> None:
        self.spec, self.params, self.names = spec, Stacks(params), names
        self.token_modality: list[str] = []
        self.token_input: list[str] = []
        self.ids: Tensor | None = None
        self.seen = torch.empty(0)
        self.routed_by: dict[int, Tensor] = {}  # what routers of attention read, by layer

    def opened(self, values: Mapping[str, Any]) -> Tensor:
        """The embedding [B, T, D] of all inputs; remembers whose tokens they are, and padding."""
        parts = [self.embedded(name, values) for name in self.names]
        named = list(zip(self.names, parts, strict=True))
        self.token_input = [name for name, part in named for _ in range(part.shape[1])]
        self.token_modality = [self.spec.inputs[name].modality for name in self.token_input]
        if all(self.spec.inputs[name].vocab is not None for name in self.names):
            self.ids = torch.cat([values[name] for name in self.names], 1)
        self.seen = torch.cat(
            [
                ~values.get(f"{name}_padding", torch.zeros(part.shape[:2], dtype=torch.bool))
                for name, part in named
            ],
            1,
        )
        return torch.cat(parts, 1)

    # Inputs

    def embedded(self, name: str, values: Mapping[str, Any]) -> Tensor:
        each = self.spec.inputs[name]
        embed, path, x = self.spec.embed.get(each.modality), f"embed.{each.modality}", values[name]
        if each.vocab is not None:
            one_hot = torch.nn.functional.one_hot(x, each.vocab).to(torch.float64)
            x = one_hot @ self.params[f"{path}.weight"]
        elif each.features is not None:
            x = self.matrix(f"{path}.project", x)
        else:
            x = self.patches(path, embed, x, values.get(f"{name}_masked"))
        if embed is not None and embed.position is not None:
            table = self.params[f"{path}.position.weight"]
            x = x + table[embed.position.offset :][: x.shape[1]]
        padding = values.get(f"{name}_padding")
        return x if padding is None else torch.where(padding[..., None], 0.0, x)

    def patches(self, path: str, embed: Any, image: Tensor, masked: Tensor | None) -> Tensor:
        side, rows = embed.patch.size, image.shape[-1] // embed.patch.size
        weight = self.params[f"{path}.patch.weight"].flatten(1)
        found = []
        for row in range(rows):
            for column in range(rows):
                cut = image[
                    :, :, row * side : (row + 1) * side, column * side : (column + 1) * side
                ]
                found.append(cut.flatten(1) @ weight.T)
        x = torch.stack(found, 1) + self.params.get(f"{path}.patch.bias", 0.0)
        if masked is not None:
            keep = (~masked)[..., None].to(x.dtype)
            x = keep * x + (1 - keep) * self.params[f"{path}.mask_token"]
        if embed.cls:
            x = torch.cat([self.params[f"{path}.cls"].repeat(len(x), 1, 1), x], 1)
        return x

    # Parts

    def matrix(self, path: str, x: Tensor) -> Tensor:
        return x @ self.params[f"{path}.weight"].T + self.params.get(f"{path}.bias", 0.0)

    def normed(self, path: str, norm: Any, x: Tensor, base: Any) -> Tensor:
        """One norm with one set of parameters."""
        eps = base.eps if norm.eps is None else norm.eps
        if (norm.kind or base.kind) == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
        x = x / ((x**2).mean(-1, keepdim=True) + eps).sqrt()
        return x * self.params.get(f"{path}.weight", 1.0) + self.params.get(f"{path}.bias", 0.0)

    def way_of(self, token: int, experts: Any) -> str:
        if experts is None or experts.route != "modality":
            return ""
        fused, own = experts.fused, self.token_modality[token]
        if fused is not None and fused.where and set(fused.when) == set(self.token_modality):
            return ".fused"
        return "." + next((way for way, them in experts.ways.items() if own in them), own)

    def by_way(self, path: str, experts: Any, x: Tensor, run: Run, seen: Tensor) -> Tensor:
        """`run(way, x)` on all tokens for every way; each token takes the result of its own.

        seen: what a router of the part at `path` reads.
        """
        ways = [self.way_of(i, experts) for i in range(x.shape[1])]
        inner = experts.inside if experts is not None and experts.route == "modality" else experts
        if inner is None:
            results = {way: run(way, x) for way in set(ways)}
            return torch.stack([results[way][:, i] for i, way in enumerate(ways)], 1)
        found = torch.zeros(0)
        for way, tokens in self.together(ways, experts):
            weights = gates(
                self.params,
                f"{path}.router{way}",
                inner,
                seen[:, tokens],
                None if self.ids is None else self.ids[:, tokens],
                self.seen[:, tokens],
            )
            every = [run(f"{way}@{e}", x[:, tokens]) for e in range(inner.count)]
            y = sum(weights[..., e, None] * each for e, each in enumerate(every))
            if not len(found):
                found = torch.zeros(*x.shape[:2], y.shape[-1], dtype=x.dtype)  # type: ignore[union-attr]
            found = found.index_copy(1, torch.tensor(tokens), y)  # type: ignore[arg-type]
        return found

    def together(self, ways: list[str], experts: Any) -> list[tuple[str, list[int]]]:
        """The tokens that a router sees together: all, or those of one input in its way."""
        if experts.route != "modality" or ways[0] == ".fused":
            return [(ways[0], list(range(len(ways))))]
        return [
            (ways[tokens[0]], tokens)
            for name in self.names
            if (tokens := [i for i, each in enumerate(self.token_input) if each == name])
        ]

    def norm(self, path: str, norm: Any, x: Tensor, base: Any) -> Tensor:
        def run(way: str, y: Tensor) -> Tensor:
            return self.normed(f"{path}{way}", norm, y, base)

        return self.by_way(path, norm.experts, x, run, x)

    def norm_of(self, layer: int, part: str) -> Any:
        """The norm of a sublayer; of a parallel block, that of the block."""
        block = self.spec.blocks[layer]
        return (part and getattr(block, part).norm) or block.norm

    def block_norm(self, layer: int, part: str, name: str, x: Tensor) -> Tensor:
        """A norm of a sublayer at `name` below it, with the parameters of that place."""
        path = ".".join(each for each in (f"blocks.{layer}", part, name) if each)
        return self.norm(path, self.norm_of(layer, part), x, self.spec.blocks[layer].norm)

    # Blocks

    def projected(self, layer: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Query, key and value [B, T, heads * E] of the normalised inputs q, k and v."""
        part, path = self.spec.blocks[layer].attention, f"blocks.{layer}.attention"
        found = {}
        for stream, role in zip("qkv", ("query", "key", "value"), strict=True):
            role_path = f"{path}.{role}"
            found[role] = self.by_way(
                path,
                part.experts,
                inputs[stream],
                lambda way, y, p=role_path: self.matrix(f"{p}{way}", y),  # type: ignore[misc]
                inputs["q"],
            )
        self.routed_by[layer] = inputs["q"]
        return found

    def attention(self, layer: int, projected: Mapping[str, Tensor]) -> Tensor:
        """What attention puts out, before any norm of it."""
        block, path = self.spec.blocks[layer], f"blocks.{layer}.attention"
        part, base = block.attention, block.norm
        heads, kv_heads = part.heads, part.kv_heads or part.heads
        query, key = (
            self.positioned(layer, role, projected[role], count)
            for role, count in (("query", heads), ("key", kv_heads))
        )
        value = projected["value"].unflatten(-1, (kv_heads, -1))
        y = self.attended(part.mask == "causal", query, key, value)

        def finish(way: str, z: Tensor) -> Tensor:
            if part.sub_norm is not None:
                z = self.normed(f"{path}.sub_norm{way}", part.sub_norm, z, base)
            return self.matrix(f"{path}.output{way}", z)

        return self.by_way(path, part.experts, y, finish, self.routed_by[layer])

    def positioned(self, layer: int, role: str, x: Tensor, count: int) -> Tensor:
        """[B, T, heads, E] with norm and rotary positions."""
        block, path = self.spec.blocks[layer], f"blocks.{layer}.attention.{role}_norm"
        qk, rotary = block.attention.qk_norm, block.attention.position
        if qk is not None and qk.over == "width":
            x = self.normed(path, qk, x, block.norm)
        x = x.unflatten(-1, (count, -1))
        if qk is not None and qk.over == "head":
            x = self.normed(path, qk, x, block.norm)
        if rotary is None:
            return x
        turning = int(x.shape[-1] * rotary.fraction)
        columns = list(x.unbind(-1))
        token = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        for j in range(turning // 2):
            half = rotary.pairs == "half"
            a, b = (j, j + turning // 2) if half else (2 * j, 2 * j + 1)
            turn = torch.polar(torch.ones_like(token), token * rotary.base ** (-2 * j / turning))
            turned = torch.complex(columns[a], columns[b]) * turn
            columns[a], columns[b] = turned.real, turned.imag
        return torch.stack(columns, -1)

    def attended(self, causal: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Heads laid end to end: [B, T, heads * E]."""
        group = query.shape[2] // key.shape[2]
        found = []
        for head in range(query.shape[2]):
            k, v = key[:, :, head // group], value[:, :, head // group]
            scores = torch.einsum("bte,bse->bts", query[:, :, head], k) / k.shape[-1] ** 0.5
            allowed = self.seen[:, None, :].expand(scores.shape)
            if causal:
                allowed = allowed & torch.ones(scores.shape[1:], dtype=torch.bool).tril()
            scores = torch.where(allowed, scores, -torch.inf)
            odds = (scores - scores.amax(-1, keepdim=True)).exp()
            found.append(odds / odds.sum(-1, keepdim=True) @ v)
        return torch.cat(found, -1)

    def ffn(self, layer: int, x: Tensor) -> Tensor:
        """What the feed-forward part puts out of its normalised input, before any norm of it."""
        block, path = self.spec.blocks[layer], f"blocks.{layer}.ffn"
        part = block.ffn

        def run(way: str, y: Tensor, path: str = path) -> Tensor:
            up = self.matrix(f"{path}.up{way}", y)
            activation = ACTIVATIONS[part.activation]
            if part.gate:
                z = activation(self.matrix(f"{path}.gate{way}", y)) * up
            else:
                z = activation(up)
            if part.sub_norm is not None:
                z = self.normed(f"{path}.sub_norm{way}", part.sub_norm, z, block.norm)
            return self.matrix(f"{path}.down{way}", z)

        y = self.by_way(path, part.experts, x, run, x)
        ways = [self.way_of(i, part.experts) for i in range(x.shape[1])]
        shared = self.shared_of(part.experts)
        if shared is None:
            return y
        every = {way: run(way, x, f"{path}.shared") for way in set(ways)}
        if shared.gate:
            for way in every:
                score = self.matrix(f"{path}.shared.score{way}", x)
                every[way] = every[way] * torch.sigmoid(score)
        return y + torch.stack([every[way][:, i] for i, way in enumerate(ways)], 1)

    def shared_of(self, experts: Any) -> Any:
        if experts is None:
            return None
        inner = experts.inside if experts.route == "modality" else experts
        return None if inner is None else inner.shared
