"""The feed-forward part of a block, dense or with experts. It never adds its input."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.parts import norm as norms
from multiway.compiler.assemble.parts import plain_norm, routers
from multiway.compiler.assemble.parts.experts import Way, Ways, ways_of
from multiway.compiler.assemble.program import Program, join
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.language.block import FFN, Block
from multiway.specs.language.routing import Chosen, Shared, chosen


def declare(declared: Declared, layer: int) -> None:
    """The parameters of the feed-forward part of a block."""
    spec = declared.spec
    block, path, width = spec.blocks[layer], f"blocks.{layer}.ffn", spec.width
    ffn, norm = block.ffn, block.ffn.norm or block.norm
    norms.declare_at(declared, "input", f"{path}.norm", norm, block.norm)
    ways, experts = ways_of(spec, ffn.experts), chosen(ffn.experts)
    for way in ways:
        routers.declare(declared, join(path, "router", way), experts, width=width)
    _declare_ways(declared, path, ways, block, ffn.hidden, experts)
    if experts is not None and (shared := experts.shared) is not None:
        _declare_ways(declared, f"{path}.shared", ways, block, shared.hidden, None)
        for way in ways if shared.gate else ():
            at = join(path, "shared", "score", way)
            declared.linear(at, out=1, width=width, bias=False, part=shared)
    norms.declare_at(declared, "output", f"{path}.output_norm", norm, block.norm)


def _declare_ways(
    declared: Declared,
    path: str,
    ways: tuple[str, ...],
    block: Block,
    hidden: int,
    experts: Chosen | None,
) -> None:
    ffn, width = block.ffn, declared.spec.width

    def linear(name: str, out: int, width: int) -> None:
        for way in ways:
            at = join(path, name, way)
            declared.linear(at, out=out, width=width, bias=ffn.bias, part=ffn, experts=experts)

    linear("up", hidden, width)
    if ffn.gate:
        linear("gate", hidden, width)
    plain_norm.declare(
        declared,
        f"{path}.sub_norm",
        ffn.sub_norm,
        width=hidden,
        ways=ways,
        default=block.norm,
        experts=experts,
    )
    linear("down", width, hidden)


def build(ways: Ways, layer: int, x: Value) -> Value:
    """What the feed-forward part of a block makes of x [B, T, D]."""
    program = ways.program
    block, path = program.spec.blocks[layer], f"blocks.{layer}.ffn"
    ffn, norm = block.ffn, block.ffn.norm or block.norm
    x = norms.build_at(ways, "input", f"{path}.norm", norm, x, block.norm)

    def make(way: Way, x: Value) -> Value:
        shared = way.experts.shared if way.experts else None
        y = _feed_forward(program, way, ffn, way.open(x), block)
        if shared is None:
            return y
        given = {"a": y, "b": _shared(program, way, shared, x, block)}
        return program.node(join(path, "added", way.label), "add", given, part=shared)

    y = ways.one(path, ffn.experts, x, make)
    return norms.build_at(ways, "output", f"{path}.output_norm", norm, y, block.norm)


def _feed_forward(program: Program, way: Way, ffn: FFN, x: Value, block: Block) -> Value:
    up = way.linear("up", x, part=ffn)
    given = way.linear("gate", x, part=ffn) if ffn.gate else up
    at = join(way.path, "activation", way.label)
    z = program.activation(at, ffn.activation, given, part=ffn)
    if ffn.gate:
        gated = {"a": z, "b": up}
        z = program.node(join(way.path, "gated", way.label), "multiply", gated, part=ffn)
    if ffn.sub_norm is not None:
        z = way.norm("sub_norm", ffn.sub_norm, z, default=block.norm)
    return way.close(way.linear("down", z, part=ffn))


def _shared(program: Program, way: Way, shared: Shared, x: Value, block: Block) -> Value:
    """The expert for all tokens: the same part, dense, of another width."""
    path = join(way.path, "shared")
    dense = Way(program=program, path=path, label=way.label, name=way.name)
    y = _feed_forward(program, dense, block.ffn, x, block)
    if not shared.gate:
        return y
    score = dense.linear("score", x, part=shared)
    gate = program.activation(join(path, "gate_value", way.label), "sigmoid", score, part=shared)
    at = join(path, "spread", way.label)
    one = program.node(at, "spread", {"x": y}, attrs={"count": 1}, part=shared)
    at, given = join(path, "mixed", way.label), {"xs": one, "gates": gate}
    return program.node(at, "mix_experts", given, attrs={"most": 1}, part=shared)
