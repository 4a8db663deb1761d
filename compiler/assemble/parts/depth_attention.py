"""Attention over depth: a learned query meets every source, and a softmax weighs the sources."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.connections import Reading
from multiway.specs.language.wiring import Mix, Router


def declare(declared: Declared, router: Router, found: Reading) -> None:
    """The queries of one reader, and the gain of the norm of what they meet."""
    shape = (declared.spec.width,)
    for way in found.ways:
        path = _path(found, way)
        declared.add(f"{path}.query", shape, ZEROS, router)
        if router.weight:
            declared.add(f"{path}.weight", shape, ONES, router)


def _path(found: Reading, way: str) -> str:
    """Where the query of a way stands; the only way of a mix has no name."""
    return f"{found.path}.router" if len(found.ways) == 1 else f"{found.path}.router.{way}"


def build(program: Program, name: str, mix: Mix, found: Reading, history: Value) -> list[Value]:
    """The sums [B, T, D] of one reader, one a way.

    name: of the mix. history: the sources, as a list.
    """
    return [_sum(program, name, mix, found, way, history) for way in found.ways]


def _sum(program: Program, name: str, mix: Mix, found: Reading, way: str, history: Value) -> Value:
    router = mix.router
    assert router is not None
    eps = router.eps if router.eps is not None else program.spec.blocks[0].norm.eps
    attrs, given = {"groups": router.groups, "eps": eps}, {"history": history}
    path = _path(found, way)
    weights = program.node(path, "depth_router", given, attrs=attrs, part=router)
    if name == "mix":
        program.name(f"weights.{found.index}", weights)
    op = "mix" if router.groups == 1 else "mix_groups"
    at = f"{found.path}.sum" if len(found.ways) == 1 else f"{found.path}.sum.{way}"
    return program.node(at, op, {"history": history, "weights": weights}, part=mix)
