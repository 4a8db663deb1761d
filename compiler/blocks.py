"""The sublayers of a block: attention and feed-forward, without what adds them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from multiway.compiler.declared import join
from multiway.compiler.graph import Value
from multiway.compiler.hiddens import Cache, Hiddens
from multiway.compiler.parameters import attention_widths
from multiway.specs.language import Block, Rotary
from multiway.specs.parts import Norm, PlainNorm

if TYPE_CHECKING:
    from multiway.compiler.builder import Builder

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

        def project(label: str, way: str, xs: list[Value]) -> list[Value]:
            return [
                build.linear(
                    join(path, name, label), x, part=attention, params=join(path, name, way)
                )
                for name, x in zip(("query", "key", "value"), xs, strict=True)
            ]

        projected = build.routed_many(path, attention.experts, inputs, seq, project)
        projected[2] = value(projected[2])
        merged = self._attend(layer, block, projected)

        def finish(label: str, way: str, x: Value) -> Value:
            if attention.sub_norm is not None:
                x = self._sub_norm(path, attention.sub_norm, x, label, way, block)
            out = f"{path}.output"
            return build.linear(join(out, label), x, part=attention, params=join(out, way))

        y = build.routed(f"{path}.output", attention.experts, merged, seq, finish)
        return self._output(path, norm, y, block)

    def ffn(self, layer: int, x: Value) -> Value:
        """The feed-forward part of a block."""
        block, path, build = self.spec.blocks[layer], f"blocks.{layer}.ffn", self.builder
        ffn = block.ffn
        norm = ffn.norm or block.norm
        x = self._input(f"{path}.norm", norm, x, block)

        def make(label: str, way: str, y: Value) -> Value:
            def part(name: str, x: Value) -> Value:
                return build.linear(
                    join(path, name, label), x, part=ffn, params=join(path, name, way)
                )

            kind = {"kind": ffn.activation}
            up = part("up", y)
            given = {"x": part("gate", y) if ffn.gate else up}
            at = join(path, "activation", label)
            z = build.node(at, "activation", given, attrs=kind, part=ffn)
            if ffn.gate:
                gated = {"a": z, "b": up}
                z = build.node(join(path, "gated", label), "multiply", gated, part=ffn)
            if ffn.sub_norm is not None:
                z = self._sub_norm(path, ffn.sub_norm, z, label, way, block)
            return part("down", z)

        return self._output(path, norm, build.routed(path, ffn.experts, x, self.seq, make), block)

    # Norms

    def _input(self, path: str, norm: Norm, x: Value, block: Block) -> Value:
        if "input" not in self.places:
            return x
        return self.builder.routed_norm(path, norm, x, self.seq, block.norm)

    def _output(self, path: str, norm: Norm, y: Value, block: Block) -> Value:
        if "output" not in self.places:
            return y
        return self.builder.routed_norm(f"{path}.output_norm", norm, y, self.seq, block.norm)

    def _sub_norm(
        self, path: str, norm: PlainNorm, x: Value, label: str, way: str, block: Block
    ) -> Value:
        at, params = join(path, "sub_norm", label), join(path, "sub_norm", way)
        return self.builder.norm(at, norm, x, params=params, default=block.norm)

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
