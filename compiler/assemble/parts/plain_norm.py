"""A norm as one op. Those that have copies for modalities or experts are in norm.py."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared, start_of
from multiway.compiler.assemble.program import Program, join
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.language.parts import PlainNorm
from multiway.specs.language.routing import Chosen


def kind_of(norm: PlainNorm, default: PlainNorm) -> str:
    """The kind of a norm, inherited from block.norm where it gives none."""
    return norm.kind or default.kind or "layer_norm"


def eps_of(norm: PlainNorm, default: PlainNorm) -> float:
    """What is added inside the square root, inherited in the same way."""
    eps = norm.eps if norm.eps is not None else default.eps
    assert eps is not None
    return eps


def has_bias(norm: PlainNorm, default: PlainNorm) -> bool:
    """Whether a norm with a gain has a shift."""
    return norm.bias if norm.bias is not None else kind_of(norm, default) == "layer_norm"


def declare(
    declared: Declared,
    path: str,
    norm: PlainNorm | None,
    *,
    width: int,
    ways: tuple[str, ...] = ("",),
    default: PlainNorm | None = None,
    experts: Chosen | None = None,
) -> None:
    """The gain and the shift, if the norm has them.

    default: the norm whose kind is inherited; outside of blocks that of the first block.
    ways, experts: those of the part that the norm belongs to.
    """
    if norm is None or not norm.weight:
        return
    default = default or declared.spec.blocks[0].norm
    kind = kind_of(norm, default)
    roles = ("weight", "bias") if has_bias(norm, default) else ("weight",)
    for way in ways:
        for role in roles:
            start = start_of(kind, role)
            declared.add(join(path, way, role), (width,), start, norm, experts=experts)


def build(
    program: Program,
    path: str,
    norm: PlainNorm,
    x: Value,
    *,
    params: str | dict[str, str] | None = None,
    default: PlainNorm | None = None,
) -> Value:
    """default: the norm that kind and eps are inherited from; that of the first block.
    params: where gain and shift stand, if not under `path`; {} leaves them out."""
    default = default or program.spec.blocks[0].norm
    attrs, op = {"eps": eps_of(norm, default)}, kind_of(norm, default)
    return program.node(path, op, {"x": x}, attrs=attrs, params=params, part=norm)
