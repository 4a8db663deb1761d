"""A norm that may have a copy for every modality, or for every expert."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.parts import plain_norm, routers
from multiway.compiler.assemble.parts.experts import Way, Ways, ways_of
from multiway.compiler.assemble.program import join
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.language.parts import Norm, PlainNorm
from multiway.specs.language.routing import chosen


def declare(
    declared: Declared, path: str, norm: Norm | None, *, default: PlainNorm | None = None
) -> None:
    """A norm of hidden states [B, T, D]; default as in plain_norm.declare."""
    if norm is None:
        return
    width = declared.spec.width
    ways, experts = ways_of(declared.spec, norm.experts), chosen(norm.experts)
    for way in ways:
        routers.declare(declared, join(path, "router", way), experts, width=width)
    plain_norm.declare(
        declared, path, norm, width=width, ways=ways, default=default, experts=experts
    )


def build(
    ways: Ways, path: str, norm: Norm, x: Value, *, default: PlainNorm | None = None
) -> Value:
    """The router of a norm with experts reads what the norm reads."""
    inherited = default or ways.program.spec.blocks[0].norm

    def make(way: Way, x: Value) -> Value:
        if way.experts is None:
            return way.norm("", norm, x, default=inherited)
        x = way.bare_norm("", norm, x, default=inherited)
        return way.close(way.affine("", norm, way.open(x)))

    return ways.one(path, norm.experts, x, make)


# Where the norms of a sublayer stand is said by the wiring: `place` is one of its `norms`.


def declare_at(declared: Declared, place: str, path: str, norm: Norm, default: PlainNorm) -> None:
    """A norm of a sublayer, if the wiring has norms at this place."""
    if place in declared.spec.wiring.norms:
        declare(declared, path, norm, default=default)


def build_at(ways: Ways, place: str, path: str, norm: Norm, x: Value, default: PlainNorm) -> Value:
    """A value behind a norm of a sublayer; itself where the wiring has no norms at this place."""
    if place not in ways.program.spec.wiring.norms:
        return x
    return build(ways, path, norm, x, default=default)
