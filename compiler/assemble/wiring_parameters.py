"""The parameters of a wiring: those of mixes, of the residual, of lanes."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared, initial_values, start_of
from multiway.compiler.init import IDENTITY, NORMAL, ONES, ZEROS, Init, diagonal, one_hot, tiled
from multiway.specs.config import Config, Real
from multiway.specs.parts import Initial, PlainNorm
from multiway.specs.readings import Reading, Site, read_sources, reading
from multiway.specs.wiring import Generator, Hyper, Lanes, Manifold, Mix, Static


def declare_before(declared: Declared, site: Site) -> None:
    """What acts before a sublayer, or before the output: its mixes, and the lanes' weights."""
    spec = declared.spec
    for name, mix in spec.wiring.mixes():
        if mix.source_norm is not None and site.index == 0:
            for source in read_sources(spec, name, mix):
                declared.norm(history_norm(name, source), mix.source_norm, width=spec.width)
        if (found := reading(spec, name, mix, site)) is not None:
            _mix(declared, mix, found)
    lanes = spec.wiring.lanes
    if lanes is not None and has_lanes(lanes, site):
        _lanes(declared, lanes, site)


def declare_behind(declared: Declared, site: Site) -> None:
    """What acts behind a sublayer: how its output joins the residual stream."""
    spec, width = declared.spec, declared.spec.width
    if site.part == "output":
        return
    path, residual = f"{site.path}.residual", spec.wiring.residual
    if residual is not None:
        if (gain := residual.gain) is not None:
            shape = () if gain.over == "sublayer" else (width,)
            declared.add(f"{path}.gain", shape, _start(gain.init, shape, ONES), gain)
        if residual.balance:
            declared.add(f"{path}.balance", (2,), ZEROS, residual)
        if (low := residual.low_rank) is not None:
            start = tiled((low.rank * width) ** -0.5)
            _linear(declared, f"{path}.down", low.rank, width, start, low)
            _linear(declared, f"{path}.up", width, low.rank, ZEROS, low)
    if "sum" in spec.wiring.norms:
        block = spec.blocks[site.layer]
        own = {"attention": block.attention.norm, "ffn": block.ffn.norm}.get(site.part)
        declared.norm(f"{site.path}.sum_norm", own or block.norm, width=width, default=block.norm)


def history_norm(name: str, source: int) -> str:
    """The path of the norm of a source of a mix."""
    prefix = "" if name == "mix" else f"{name}."
    return f"{prefix}history.{source}.norm"


def _start(initial: Initial | None, shape: tuple[int, ...], default: Init) -> Init:
    return initial_values(initial, shape) if initial is not None else default


def _linear(declared: Declared, path: str, out: int, width: int, init: Init, part: Config) -> None:
    declared.linear(path, out=out, width=width, bias=False, part=part, init=init)


# Mixes


def _mix(declared: Declared, mix: Mix, found: Reading) -> None:
    width = declared.spec.width
    if mix.static is not None:
        _static(declared, mix, mix.static, found)
    if mix.generator is not None:
        _generator(declared, mix.generator, found)
    if mix.router is not None:
        for way in found.ways:
            path = router_path(found, way)
            declared.add(f"{path}.query", (width,), ZEROS, mix.router)
            if mix.router.weight:
                declared.add(f"{path}.weight", (width,), ONES, mix.router)
    for way in found.ways:
        if mix.gate is not None:
            init = _start(mix.gate.init, (), ZEROS)
            declared.add(f"{found.path}.gate.{way}", (), init, mix.gate)
        if mix.sum_norm is not None and way in mix.sum_norm.streams:
            declared.norm(f"{found.path}.sum_norm.{way}", mix.sum_norm, width=width)


def router_path(found: Reading, way: str) -> str:
    """Where the query of a way stands; the only way of a mix has no name."""
    return f"{found.path}.router" if len(found.ways) == 1 else f"{found.path}.router.{way}"


def _static(declared: Declared, mix: Mix, static: Static, found: Reading) -> None:
    path = f"{found.path}.static"
    if static.complement:
        init = _start(static.init, (1,), start_of("complement_weights", "static"))
        declared.add(path, (1,), init, static)
        return
    columns = found.known if static.columns == "all" else len(found.sources)
    shape = (len(found.ways), columns)
    default = ZEROS if mix.add else start_of("depth_weights", "static")
    declared.add(path, shape, _start(static.init, shape, default), static)


def generator_norm(generator: Generator) -> PlainNorm:
    """The norm of a generator: an RMS norm without weight unless the spec gives one."""
    return generator.norm or PlainNorm(kind="rms_norm", weight=False, node=generator.node)


def _generator(declared: Declared, generator: Generator, found: Reading) -> None:
    ways, sources, width = len(found.ways), len(found.sources), declared.spec.width
    hidden = generator.hidden.count(ways=ways, sources=sources, last=found.last)
    path = found.path
    declared.norm(f"{path}.norm", generator_norm(generator), width=width)
    fan_in = Init(kind="normal", std=width**-0.5)
    _linear(declared, f"{path}.hidden", hidden, width, fan_in, generator)
    shape = (ways * sources, hidden)
    init = _start(generator.init, shape, ZEROS)
    _linear(declared, f"{path}.output", ways * sources, hidden, init, generator)


# Lanes


def has_lanes(lanes: Lanes, site: Site) -> bool:
    """Whether lanes are read here with weights of their own."""
    if site.part == "output":
        return lanes.output == "weighted"
    return lanes.at == "sublayer" or site.opens


def lanes_path(lanes: Lanes, site: Site) -> str:
    return f"{site.block if lanes.at == 'block' else site.path}.lanes"


def lane_columns(lanes: Lanes, site: Site) -> dict[str, int]:
    """The weights that are made for a site, with how many each lane has of a kind."""
    if site.part == "output":
        return {"read": 1}
    return {"read": lanes.count if lanes.split else 1, "mix": lanes.count, "write": 1}


def _lanes(declared: Declared, lanes: Lanes, site: Site) -> None:
    path = lanes_path(lanes, site)
    if isinstance(lanes.weights, Manifold):
        _manifold(declared, lanes, lanes.weights, path, site)
    elif lanes.weights is not None:
        _hyper(declared, lanes, lanes.weights, path, site)


def lane_norm(weights: Hyper | Manifold) -> PlainNorm:
    """The norm of what weights of lanes are made from."""
    if isinstance(weights, Manifold):
        default = PlainNorm(kind="rms_norm", weight=False, node=weights.node)
        return weights.norm or default
    assert weights.dynamic is not None
    node = weights.dynamic.node
    return weights.dynamic.norm or PlainNorm(kind="layer_norm", eps=Real(1e-5), node=node)


def _hyper(declared: Declared, lanes: Lanes, weights: Hyper, path: str, site: Site) -> None:
    count, dynamic = lanes.count, weights.dynamic
    width = declared.spec.width // (count if lanes.split else 1)
    starts = {
        "read": IDENTITY if lanes.split else one_hot(hyper_index(lanes, site) % count),
        "mix": IDENTITY,
        "write": ONES,
    }
    if dynamic is not None:
        declared.norm(f"{path}.norm", lane_norm(weights), width=width)
    for kind, columns in lane_columns(lanes, site).items():
        declared.add(f"{path}.{kind}.static", (count, columns), starts[kind], weights)
        if dynamic is not None:
            _linear(declared, f"{path}.{kind}", columns, width, ZEROS, dynamic)
    if dynamic is not None:
        start = Init(kind="constant", value=dynamic.scale)
        declared.add(f"{path}.scale", (), start, dynamic)
        declared.add(f"{path}.write.scale", (), start, dynamic)


def hyper_index(lanes: Lanes, site: Site) -> int:
    """The number of a reader of lanes, which decides the lane that it reads at first."""
    return site.index if lanes.at == "sublayer" else site.layer


def _manifold(declared: Declared, lanes: Lanes, weights: Manifold, path: str, site: Site) -> None:
    count, total = lanes.count, lanes.count * declared.spec.width
    declared.norm(f"{path}.norm", lane_norm(weights), width=total)
    for kind, columns in lane_columns(lanes, site).items():
        out = count * columns
        start = _start(weights.init, (out, total), NORMAL)
        _linear(declared, f"{path}.{kind}", out, total, start, weights)
        scale = Init(kind="constant", value=weights.scale)
        declared.add(f"{path}.{kind}.scale", (), scale, weights)
        mixing = weights.sinkhorn if kind == "mix" else None
        bias = diagonal(mixing.diagonal) if mixing is not None else ZEROS
        declared.add(f"{path}.{kind}.bias", (out,), bias, weights)
