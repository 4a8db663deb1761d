"""Parallel residual lanes: what a sublayer reads of them, and how its output is written."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared, initial_or
from multiway.compiler.assemble.parts import plain_norm
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.init import IDENTITY, NORMAL, ONES, ZEROS, Init, diagonal, one_hot
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.connections import Site
from multiway.specs.language.fields import Real
from multiway.specs.language.parts import PlainNorm
from multiway.specs.language.wiring import Hyper, Lanes, Manifold, Sinkhorn


def declare(declared: Declared, lanes: Lanes, site: Site) -> None:
    """The weights of lanes at a site, if it reads them with weights of its own."""
    if not _has_weights(lanes, site):
        return
    if isinstance(lanes.weights, Manifold):
        _declare_manifold(declared, lanes, lanes.weights, site)
    elif lanes.weights is not None:
        _declare_hyper(declared, lanes, lanes.weights, site)


def _has_weights(lanes: Lanes, site: Site) -> bool:
    """Whether lanes are read here with weights of their own."""
    if site.part == "output":
        return lanes.output == "weighted"
    return lanes.at == "sublayer" or site.opens


def _path(lanes: Lanes, site: Site) -> str:
    """What the weights of a site stand under."""
    return f"{site.block if lanes.at == 'block' else site.path}.lanes"


def _columns(lanes: Lanes, site: Site) -> dict[str, int]:
    """The weights that are made for a site, with how many each lane has of a kind."""
    if site.part == "output":
        return {"read": 1}
    return {"read": lanes.count if lanes.split else 1, "mix": lanes.count, "write": 1}


def _norm(weights: Hyper | Manifold) -> PlainNorm:
    """The norm of what weights of lanes are made from."""
    if isinstance(weights, Manifold):
        default = PlainNorm(kind="rms_norm", weight=False, node=weights.node)
        return weights.norm or default
    assert weights.dynamic is not None
    node = weights.dynamic.node
    return weights.dynamic.norm or PlainNorm(kind="layer_norm", eps=Real(1e-5), node=node)


def _declare_hyper(declared: Declared, lanes: Lanes, weights: Hyper, site: Site) -> None:
    path, count, dynamic = _path(lanes, site), lanes.count, weights.dynamic
    width = declared.spec.width // (count if lanes.split else 1)
    reader = site.index if lanes.at == "sublayer" else site.layer
    starts = {
        "read": IDENTITY if lanes.split else one_hot(reader % count),  # each at first one lane
        "mix": IDENTITY,
        "write": ONES,
    }
    if dynamic is not None:
        plain_norm.declare(declared, f"{path}.norm", _norm(weights), width=width)
    for kind, columns in _columns(lanes, site).items():
        at = f"{path}.{kind}"
        declared.add(f"{at}.static", (count, columns), starts[kind], weights)
        if dynamic is not None:
            declared.linear(at, out=columns, width=width, bias=False, part=dynamic, init=ZEROS)
    if dynamic is not None:
        start = Init(kind="constant", value=dynamic.scale)
        declared.add(f"{path}.scale", (1,), start, dynamic)
        declared.add(f"{path}.write.scale", (1,), start, dynamic)


def _declare_manifold(declared: Declared, lanes: Lanes, weights: Manifold, site: Site) -> None:
    path, count, total = _path(lanes, site), lanes.count, lanes.count * declared.spec.width
    plain_norm.declare(declared, f"{path}.norm", _norm(weights), width=total)
    for kind, columns in _columns(lanes, site).items():
        at, out = f"{path}.{kind}", count * columns
        start = initial_or(weights.init, (out, total), NORMAL)
        declared.linear(at, out=out, width=total, bias=False, part=weights, init=start)
        scale = Init(kind="constant", value=weights.scale)
        declared.add(f"{at}.scale", (1,), scale, weights)
        mixing = weights.sinkhorn if kind == "mix" else None
        bias = diagonal(mixing.diagonal) if mixing is not None else ZEROS
        declared.add(f"{at}.bias", (out,), bias, weights)


class LaneState:
    """The lanes while a program is built, and the weights that the last reader made."""

    def __init__(self, program: Program, lanes: Lanes) -> None:
        self.program, self.lanes = program, lanes
        self.state: Value | None = None
        self.weights: dict[str, Value] = {}

    def open(self, x: Value) -> None:
        """The lanes at the start: copies of the embedding, or pieces of it."""
        op = "split_lanes" if self.lanes.split else "spread"
        attrs = {"count": self.lanes.count}
        self.state = self.program.node("lanes.open", op, {"x": x}, attrs=attrs, part=self.lanes)

    def read(self, site: Site, hidden: Value) -> Value:
        """What a sublayer reads; inside a block that reads as a whole, the residual stream."""
        program, lanes = self.program, self.lanes
        assert self.state is not None
        if site.opens or lanes.at == "sublayer":
            program.name(f"lanes.{site.layer if lanes.at == 'block' else site.index}", self.state)
        if site.part == "output" and lanes.output != "weighted":
            op = "join_lanes" if lanes.split else "sum_lanes"
            return program.node("output.lanes", op, {"lanes": self.state}, part=lanes)
        if not _has_weights(lanes, site):
            return hidden
        path = _path(lanes, site)
        if isinstance(lanes.weights, Manifold):
            self.weights = self._manifold(lanes.weights, path, site)
        elif lanes.weights is not None:
            self.weights = self._hyper(lanes.weights, path, site)
        given = {"lanes": self.state, "weights": self.weights["read"]}
        return program.node(f"{path}.sum", "read_lanes", given, part=lanes)

    def writes(self, site: Site) -> bool:
        """Whether lanes are written behind a sublayer."""
        return self.lanes.at == "sublayer" or site.closes

    def write(self, site: Site, y: Value) -> None:
        """The lanes behind a sublayer: mixed, and y added to each."""
        program, lanes, path = self.program, self.lanes, _path(self.lanes, site)
        assert self.state is not None
        given = {"lanes": self.state, "weights": self.weights["mix"]}
        mixed = program.node(f"{path}.mixed", "mix_lanes", given, part=lanes)
        given = {"lanes": mixed, "y": y, "weights": self.weights["write"]}
        op = "write_pieces" if lanes.split else "write_lanes"
        self.state = program.node(f"{path}.written", op, given, part=lanes)

    def _hyper(self, weights: Hyper, path: str, site: Site) -> dict[str, Value]:
        program, dynamic, found = self.program, weights.dynamic, {}
        assert self.state is not None
        if dynamic is not None:
            z = plain_norm.build(program, f"{path}.norm", _norm(weights), self.state)
        for kind in _columns(self.lanes, site):
            at, given = f"{path}.{kind}", {}
            params = {"static": f"{at}.static"}
            if dynamic is not None:
                made = program.linear(f"{at}.linear", z, part=dynamic, params=at)
                given["dynamic"] = program.activation(
                    f"{at}.activation", dynamic.activation, made, part=dynamic
                )
                params["scale"] = f"{at}.scale" if kind == "write" else f"{path}.scale"
            found[kind] = program.node(
                f"{at}.weights", "lane_weights", given, params=params, part=weights
            )
        return found

    def _manifold(self, weights: Manifold, path: str, site: Site) -> dict[str, Value]:
        program = self.program
        assert self.state is not None
        z = program.node(f"{path}.joined", "join_lanes", {"lanes": self.state}, part=weights)
        z = self._manifold_norm(weights, f"{path}.norm", z)
        found = {}
        for kind in _columns(self.lanes, site):
            at = f"{path}.{kind}"
            # The bias beside this weight is added behind the scale, not by the projection.
            matrix = {"weight": f"{at}.weight"}
            made = program.node(f"{at}.linear", "linear", {"x": z}, params=matrix, part=weights)
            params = {role: f"{at}.{role}" for role in ("scale", "bias")}
            op, attrs = self._gate(weights, kind)
            found[kind] = program.node(
                f"{at}.weights", op, {"z": made}, attrs=attrs, params=params, part=weights
            )
        return found

    def _manifold_norm(self, weights: Manifold, path: str, z: Value) -> Value:
        norm = _norm(weights)
        if weights.root == "inside":
            return plain_norm.build(self.program, path, norm, z)
        eps = {"eps": plain_norm.eps_of(norm, self.program.spec.blocks[0].norm)}
        return self.program.node(path, "rms_divide", {"x": z}, attrs=eps, part=norm)

    def _gate(self, weights: Manifold, kind: str) -> tuple[str, dict[str, object]]:
        if kind == "read":
            return "lane_gate", {"factor": 1.0, "eps": weights.eps}
        if kind == "write":
            return "lane_gate", {"factor": weights.write, "eps": 0.0}
        sinkhorn = weights.sinkhorn or Sinkhorn(node=weights.node)
        return "sinkhorn", {
            "count": self.lanes.count,
            "start": sinkhorn.start,
            "iterations": sinkhorn.iterations,
            "eps": sinkhorn.eps,
            "transpose": sinkhorn.transpose,
        }
