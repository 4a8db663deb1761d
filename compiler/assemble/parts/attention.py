"""The sublayers of a block: attention and feed-forward, without what adds them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from multiway.compiler.assemble.declare import attention_widths
from multiway.compiler.assemble.hiddens import Cache, Hiddens
from multiway.compiler.assemble.parameters import join
from multiway.compiler.assemble.parts.experts import Way
from multiway.compiler.graph import Value
from multiway.specs.language import FFN, Block, Rotary
from multiway.specs.parts import Norm, PlainNorm
from multiway.specs.routing import Shared

if TYPE_CHECKING:
    from multiway.compiler.assemble.builder import Builder

Mixed = Callable[[Value], Value]
"""From a block's projected value to the one that it uses."""


class Sublayers:
    """Adds attention and feed-forward parts to a graph. They never add their input."""

    def __init__(self, builder: Builder, seq: Hiddens) -> None:
        self.builder, self.spec, self.seq = builder, builder.spec, seq
        self.places = self.spec.wiring.norms

    def attention(
        self, layer: int, reads: Mapping[str, Value], *, split: bool, value: Mixed
    ) -> Value:
        """reads: what q, k and v are made from. split: with a norm each. value: see Mixed."""
        block, path = self.spec.blocks[layer], f"blocks.{layer}.attention"
        attention, build, seq = block.attention, self.builder, self.seq
        norm = attention.norm or block.norm
        if split:
            inputs = [self._input(join(path, "norm", s), norm, reads[s], block) for s in "qkv"]
        else:
            inputs = [self._input(f"{path}.norm", norm, reads["q"], block)] * 3

        def project(way: Way, xs: list[Value]) -> list[Value]:
            names = ("query", "key", "value")
            return way.linears(dict(zip(names, xs, strict=True)), part=attention)

        projected = build.routing.many(path, attention.experts, inputs, seq, project)
        projected[2] = value(projected[2])
        merged = self._attend(layer, block, projected)

        def finish(way: Way, x: Value) -> Value:
            x = way.open(x, "output")
            if attention.sub_norm is not None:
                x = way.norm("sub_norm", attention.sub_norm, x, default=block.norm)
            return way.close(way.linear("output", x, part=attention), "output")

        y = build.routing.one(path, attention.experts, merged, seq, finish, under="output")
        return self._output(path, norm, y, block)

    def ffn(self, layer: int, x: Value) -> Value:
        """The feed-forward part of a block."""
        block, path, build = self.spec.blocks[layer], f"blocks.{layer}.ffn", self.builder
        ffn = block.ffn
        norm = ffn.norm or block.norm
        x = self._input(f"{path}.norm", norm, x, block)

        def make(way: Way, x: Value) -> Value:
            shared = way.experts.shared if way.experts else None
            y = self._feed_forward(way, ffn, way.open(x), block)
            if shared is None:
                return y
            given = {"a": y, "b": self._shared(way, shared, x, block)}
            return build.node(join(path, "added", way.label), "add", given, part=shared)

        y = build.routing.one(path, ffn.experts, x, self.seq, make)
        return self._output(path, norm, y, block)

    def _feed_forward(self, way: Way, ffn: FFN, x: Value, block: Block) -> Value:
        build = self.builder
        up = way.linear("up", x, part=ffn)
        given = {"x": way.linear("gate", x, part=ffn) if ffn.gate else up}
        at, kind = join(way.path, "activation", way.label), {"kind": ffn.activation}
        z = build.node(at, "activation", given, attrs=kind, part=ffn)
        if ffn.gate:
            gated = {"a": z, "b": up}
            z = build.node(join(way.path, "gated", way.label), "multiply", gated, part=ffn)
        if ffn.sub_norm is not None:
            z = way.norm("sub_norm", ffn.sub_norm, z, default=block.norm)
        return way.close(way.linear("down", z, part=ffn))

    def _shared(self, way: Way, shared: Shared, x: Value, block: Block) -> Value:
        """The expert for all tokens: the same part, dense, of another width."""
        build, path = self.builder, join(way.path, "shared")
        dense = Way(builder=build, path=path, label=way.label, name=way.name)
        y = self._feed_forward(dense, block.ffn, x, block)
        if not shared.gate:
            return y
        score = dense.linear("score", x, part=shared)
        at, kind = join(path, "gate_value", way.label), {"kind": "sigmoid"}
        gate = build.node(at, "activation", {"x": score}, attrs=kind, part=shared)
        at = join(path, "spread", way.label)
        one = build.node(at, "spread", {"x": y}, attrs={"count": 1}, part=shared)
        at, given = join(path, "mixed", way.label), {"xs": one, "gates": gate}
        return build.node(at, "mix_experts", given, attrs={"most": 1}, part=shared)

    # Norms

    def _input(self, path: str, norm: Norm, x: Value, block: Block) -> Value:
        if "input" not in self.places:
            return x
        return self.builder.routing.norm(path, norm, x, self.seq, block.norm)

    def _output(self, path: str, norm: Norm, y: Value, block: Block) -> Value:
        if "output" not in self.places:
            return y
        return self.builder.routing.norm(f"{path}.output_norm", norm, y, self.seq, block.norm)

    def _qk_norm(self, path: str, block: Block, x: Value) -> Value:
        qk = block.attention.qk_norm
        assert qk is not None
        norm = PlainNorm(kind=qk.kind, eps=qk.eps, node=qk.node)
        return self.builder.norm(path, norm, x, default=block.norm)

    # Attention

    def _attend(self, layer: int, block: Block, projected: list[Value]) -> Value:
        path, attention, build = f"blocks.{layer}.attention", block.attention, self.builder
        counts = (attention.heads, *[attention.kv_heads or attention.heads] * 2)
        qk, seq = attention.qk_norm, self.seq
        values = []
        for name, x, heads in zip(("query", "key", "value"), projected, counts, strict=True):
            over = qk.over if qk and name != "value" else ""
            if over == "width":
                x = self._qk_norm(f"{path}.{name}_norm", block, x)
            x = build.node(f"{path}.{name}_heads", "split_heads", {"x": x}, attrs={"heads": heads})
            if over == "head":
                x = self._qk_norm(f"{path}.{name}_norm", block, x)
            if isinstance(attention.position, Rotary) and name != "value":
                x = self._rotary(f"{path}.{name}_rotary", block, attention.position, x)
            values.append(x)
        query, key, value = values
        causal = attention.mask == "causal" if seq.causal is None else seq.causal
        if (cache := seq.cache) is not None:
            key, value = self._write(path, cache, layer, key, value)
            if cache.reads:
                causal = False
            else:
                key, value = values[1:]
        given = {"query": query, "key": key, "value": value} | (
            {"mask": seq.mask} if seq.mask else {}
        )
        attrs = {"causal": causal}
        y = build.node(f"{path}.core", "attention", given, attrs=attrs, part=attention)
        return build.node(f"{path}.merge", "merge_heads", {"x": y})

    def _rotary(self, path: str, block: Block, rotary: Rotary, x: Value) -> Value:
        build, seq = self.builder, self.seq
        head = attention_widths(self.spec, block)[0] // block.attention.heads
        setting = (int(head * rotary.fraction), rotary.base)
        if setting not in build.tables:
            if seq.positions is None:
                seq.positions = build.node("rotary.positions", "positions", {"x": seq.hidden})
            build.tables[setting] = build.nodes(
                join("rotary.table", str(len(build.tables)) if build.tables else ""),
                "rotary_table",
                {"x": seq.hidden, "positions": seq.positions},
                attrs={"channels": setting[0], "base": setting[1]},
                part=rotary,
            )
        cos, sin = build.tables[setting]
        given = {"x": x, "cos": cos, "sin": sin}
        return build.node(path, "rotary", given, attrs={"pairs": rotary.pairs}, part=rotary)

    def _write(
        self, path: str, cache: Cache, layer: int, key: Value, value: Value
    ) -> tuple[Value, Value]:
        new = [
            self.builder.node(
                f"{path}.{name}_cache",
                "cache_write",
                {"cache": cache.layers[2 * layer + i], "new": x, "slots": cache.slots},
            )
            for i, (name, x) in enumerate((("key", key), ("value", value)))
        ]
        cache.written += new
        return new[0], new[1]
