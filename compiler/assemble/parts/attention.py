"""Attention over the tokens of a sequence. It never adds its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multiway.compiler.assemble.hiddens import Hiddens
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.parts import norm as norms
from multiway.compiler.assemble.parts import plain_norm, routers
from multiway.compiler.assemble.parts.experts import Way, Ways, ways_of
from multiway.compiler.assemble.program import Program, join
from multiway.compiler.graph.layer_graph import Value
from multiway.compiler.graph.types import Tensor, Type, sym
from multiway.specs.connections import Site
from multiway.specs.language.block import Block, Rotary
from multiway.specs.language.parts import PlainNorm
from multiway.specs.language.routing import Chosen, chosen
from multiway.specs.spec import Spec

Mixed = Callable[[Value], Value]
"""From a block's projected value to the one that it uses."""


def head_width(spec: Spec, block: Block) -> int:
    """The width of one head."""
    return block.attention.head_width or spec.width // block.attention.heads


def cached(spec: Spec, block: Block) -> tuple[Type, Type]:
    """What a cache holds of a layer: key and value [B, K, S, E]."""
    heads = block.attention.kv_heads or block.attention.heads
    each = Tensor((sym("B"), heads, sym("S"), head_width(spec, block)))
    return each, each


def _streams(apart: bool) -> tuple[str, ...]:
    """The streams that have an input norm each; one nameless where all share one."""
    return ("q", "k", "v") if apart else ("",)


# Parameters


def declare(declared: Declared, site: Site, *, apart: bool) -> None:
    """The parameters of the attention of a block. apart: q, k and v have a norm each."""
    spec = declared.spec
    block, path = spec.blocks[site.layer], f"blocks.{site.layer}.attention"
    attention, norm = block.attention, block.attention.norm or block.norm
    for stream in _streams(apart):
        norms.declare_at(declared, "input", join(path, "norm", stream), norm, block.norm)
    ways, experts = ways_of(spec, attention.experts), chosen(attention.experts)
    for way in ways:
        routers.declare(declared, join(path, "router", way), experts, width=spec.width)
    _declare_projections(declared, path, block, ways, experts)
    norms.declare_at(declared, "output", f"{path}.output_norm", norm, block.norm)


def _declare_projections(
    declared: Declared, path: str, block: Block, ways: tuple[str, ...], experts: Chosen | None
) -> None:
    attention, width, head = block.attention, declared.spec.width, head_width(declared.spec, block)
    inner, kv = head * attention.heads, head * (attention.kv_heads or attention.heads)

    def linear(name: str, out: int, width: int) -> None:
        bias = attention.bias
        for way in ways:
            at = join(path, name, way)
            declared.linear(at, out=out, width=width, bias=bias, part=attention, experts=experts)

    linear("query", inner, width)
    linear("key", kv, width)
    linear("value", kv, width)
    if (qk := attention.qk_norm) is not None:
        for name, total in (("query_norm", inner), ("key_norm", kv)):
            size = head if qk.over == "head" else total
            at, norm = f"{path}.{name}", _qk_norm(block)
            plain_norm.declare(declared, at, norm, width=size, default=block.norm)
    plain_norm.declare(
        declared,
        f"{path}.sub_norm",
        attention.sub_norm,
        width=inner,
        ways=ways,
        default=block.norm,
        experts=experts,
    )
    linear("output", width, inner)


def _qk_norm(block: Block) -> PlainNorm:
    qk = block.attention.qk_norm
    assert qk is not None
    return PlainNorm(kind=qk.kind, eps=qk.eps, node=qk.node)


# Nodes


def build(
    ways: Ways, site: Site, reads: Mapping[str, Value], value: Mixed, *, apart: bool
) -> Value:
    """What the attention of a block makes of what it reads [B, T, D].

    reads: what q, k and v are made from. value: see Mixed. apart: they have a norm each.
    """
    spec = ways.program.spec
    block, path = spec.blocks[site.layer], f"blocks.{site.layer}.attention"
    attention, norm = block.attention, block.attention.norm or block.norm
    inputs = [
        norms.build_at(ways, "input", join(path, "norm", s), norm, reads[s or "q"], block.norm)
        for s in _streams(apart)
    ]
    if len(inputs) == 1:
        inputs *= 3

    def project(way: Way, xs: list[Value]) -> list[Value]:
        names = ("query", "key", "value")
        return way.linears(dict(zip(names, xs, strict=True)), part=attention)

    projected = ways.many(path, attention.experts, inputs, project)
    projected[2] = value(projected[2])
    merged = _attend(ways.program, ways.seq, site.layer, projected)

    def finish(way: Way, x: Value) -> Value:
        x = way.open(x, "output")
        if attention.sub_norm is not None:
            x = way.norm("sub_norm", attention.sub_norm, x, default=block.norm)
        return way.close(way.linear("output", x, part=attention), "output")

    y = ways.one(path, attention.experts, merged, finish, under="output")
    return norms.build_at(ways, "output", f"{path}.output_norm", norm, y, block.norm)


def _attend(program: Program, seq: Hiddens, layer: int, projected: list[Value]) -> Value:
    """From projected queries, keys and values to the outputs of all heads, end to end."""
    block, path = program.spec.blocks[layer], f"blocks.{layer}.attention"
    attention = block.attention
    query, key, value = _heads(program, seq, path, block, projected)
    causal = attention.mask == "causal" if seq.causal is None else seq.causal
    if (cache := seq.cache) is not None:
        written = cache.write(program, path, layer, key=key, value=value)
        if cache.reads:
            causal, (key, value) = False, written
    given = {"query": query, "key": key, "value": value}
    if seq.mask:
        given["mask"] = seq.mask
    attrs = {"causal": causal}
    y = program.node(f"{path}.core", "attention", given, attrs=attrs, part=attention)
    return program.node(f"{path}.merge", "merge_heads", {"x": y})


def _heads(
    program: Program, seq: Hiddens, path: str, block: Block, projected: list[Value]
) -> list[Value]:
    """Query, key and value by head [B, H, T, E], normed and rotated."""
    attention, qk = block.attention, block.attention.qk_norm
    counts = (attention.heads, *[attention.kv_heads or attention.heads] * 2)
    values = []
    for name, x, heads in zip(("query", "key", "value"), projected, counts, strict=True):
        over = qk.over if qk and name != "value" else ""
        norm_path = f"{path}.{name}_norm"
        if over == "width":
            x = plain_norm.build(program, norm_path, _qk_norm(block), x, default=block.norm)
        x = program.node(f"{path}.{name}_heads", "split_heads", {"x": x}, attrs={"heads": heads})
        if over == "head":
            x = plain_norm.build(program, norm_path, _qk_norm(block), x, default=block.norm)
        if isinstance(attention.position, Rotary) and name != "value":
            head = head_width(program.spec, block)
            x = _rotary(program, seq, f"{path}.{name}_rotary", head, attention.position, x)
        values.append(x)
    return values


def _rotary(
    program: Program, seq: Hiddens, path: str, head: int, rotary: Rotary, x: Value
) -> Value:
    """Heads turned by their positions. Layers with the same setting share its tables."""
    setting = (int(head * rotary.fraction), rotary.base)
    if setting not in seq.rotary:
        if seq.positions is None:
            seq.positions = program.node("rotary.positions", "positions", {"x": seq.hidden})
        seq.rotary[setting] = program.nodes(
            join("rotary.table", str(len(seq.rotary)) if seq.rotary else ""),
            "rotary_table",
            {"x": seq.hidden, "positions": seq.positions},
            attrs={"channels": setting[0], "base": setting[1]},
            part=rotary,
        )
    cos, sin = seq.rotary[setting]
    given = {"x": x, "cos": cos, "sin": sin}
    return program.node(path, "rotary", given, attrs={"pairs": rotary.pairs}, part=rotary)
