"""The residual stream: how what a sublayer puts out joins it."""

from __future__ import annotations

from collections.abc import Sequence

from multiway.compiler.assemble.parameters import Declared, initial_or
from multiway.compiler.assemble.parts import norm as norms
from multiway.compiler.assemble.parts.experts import Ways
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.init import ONES, ZEROS, tiled
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.connections import Site
from multiway.specs.language.parts import Norm
from multiway.specs.spec import Spec


def declare(declared: Declared, site: Site) -> None:
    """What acts behind a sublayer."""
    spec, width = declared.spec, declared.spec.width
    path, residual = f"{site.path}.residual", spec.wiring.residual
    if residual is not None:
        if (gain := residual.gain) is not None:
            shape = (1,) if gain.over == "sublayer" else (width,)
            declared.add(f"{path}.gain", shape, initial_or(gain.init, shape, ONES), gain)
        if residual.balance:
            declared.add(f"{path}.balance", (2,), ZEROS, residual)
        if (low := residual.low_rank) is not None:
            down, up, rank = f"{path}.down", f"{path}.up", low.rank
            start = tiled((rank * width) ** -0.5)
            declared.linear(down, out=rank, width=width, bias=False, part=low, init=start)
            declared.linear(up, out=width, width=rank, bias=False, part=low, init=ZEROS)
    norm, default = _norm(spec, site), spec.blocks[site.layer].norm
    norms.declare_at(declared, "sum", f"{site.path}.sum_norm", norm, default)


def _norm(spec: Spec, site: Site) -> Norm:
    """The norm of the stream behind a sublayer: as that of its part."""
    block = spec.blocks[site.layer]
    own = {"attention": block.attention.norm, "ffn": block.ffn.norm}.get(site.part)
    return own or block.norm


def total(program: Program, path: str, values: Sequence[Value]) -> Value:
    """The sum of the outputs of one sublayer, or of one block."""
    first, *rest = values
    for value in rest:
        first = program.node(path, "add", {"a": first, "b": value})
    return first


def scaled(program: Program, site: Site, outputs: Sequence[Value]) -> list[Value]:
    """The outputs of the parts of a sublayer, times its gain where it has one."""
    residual = program.spec.wiring.residual
    gain = residual.gain if residual else None
    if gain is None:
        return list(outputs)
    op = "scale" if gain.over == "sublayer" else "scale_channels"
    base, found = f"{site.path}.residual", []
    for i, y in enumerate(outputs):
        path, params = f"{base}.scaled", {"factor": f"{base}.gain"}
        path = f"{path}.{i}" if i else path
        found.append(program.node(path, op, {"x": y}, params=params, part=gain))
    return found


def build(ways: Ways, site: Site, old: Value, outputs: Sequence[Value]) -> Value:
    """The residual stream behind a sublayer [B, T, D].

    old: the stream before it. outputs: of its parts, of which a parallel block has two.
    """
    program = ways.program
    residual = program.spec.wiring.residual
    path = f"{site.block}.hidden" if site.closes else f"{site.path}.add"
    if residual is None or not (residual.keep or residual.balance or residual.low_rank):
        for y in outputs[:-1]:  # the stream takes one after the other
            old = program.node(f"{site.block}.attention.add", "add", {"a": old, "b": y})
        new = program.node(path, "add", {"a": old, "b": outputs[-1]})
    else:
        new = _weighed(program, site, path, old, total(program, f"{site.path}.both", outputs))
    norm, default = _norm(program.spec, site), program.spec.blocks[site.layer].norm
    return norms.build_at(ways, "sum", f"{site.path}.sum_norm", norm, new, default)


def _weighed(program: Program, site: Site, path: str, old: Value, y: Value) -> Value:
    """b (keep h + h A B) + a y."""
    residual, base = program.spec.wiring.residual, f"{site.path}.residual"
    assert residual is not None
    keep = residual.keep.number(layer=site.layer) if residual.keep else None
    if (low := residual.low_rank) is not None:
        z = program.linear(f"{base}.down", old, part=low)
        z = program.linear(f"{base}.up", z, part=low)
        given = {"a": old, "b": z}
        if keep is None:
            old = program.node(f"{base}.kept", "add", given, part=low)
        else:
            factor = {"factor": keep}
            old = program.node(f"{base}.kept", "weighted_add", given, attrs=factor, part=low)
            keep = None
    if residual.balance:
        params, given = {"balance": f"{base}.balance"}, {"a": y, "b": old}
        return program.node(path, "balanced_add", given, params=params, part=residual)
    given = {"a": old, "b": y}
    if keep is None:
        return program.node(path, "add", given, part=residual)
    return program.node(path, "weighted_add", given, attrs={"factor": keep}, part=residual)
