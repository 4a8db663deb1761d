"""Parallel residual lanes: what a sublayer reads of them, and how its output is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multiway.compiler.assemble.parameters import norm_eps
from multiway.compiler.assemble.wiring_parameters import (
    has_lanes,
    lane_columns,
    lane_norm,
    lanes_path,
)
from multiway.compiler.graph import Value
from multiway.specs.readings import Site
from multiway.specs.wiring import Hyper, Lanes, Manifold, Sinkhorn

if TYPE_CHECKING:
    from multiway.compiler.assemble.builder import Builder


class LaneState:
    """The lanes while a program is built, and the weights that the last reader made."""

    def __init__(self, builder: Builder, lanes: Lanes) -> None:
        self.builder, self.lanes = builder, lanes
        self.state: Value | None = None
        self.weights: dict[str, Value] = {}

    def open(self, x: Value) -> None:
        """The lanes at the start: copies of the embedding, or pieces of it."""
        op = "split_lanes" if self.lanes.split else "spread"
        attrs = {"count": self.lanes.count}
        self.state = self.builder.node("lanes.open", op, {"x": x}, attrs=attrs, part=self.lanes)

    def read(self, site: Site, hidden: Value) -> Value:
        """What a sublayer reads; inside a block that reads as a whole, the residual stream."""
        build, lanes = self.builder, self.lanes
        assert self.state is not None
        if site.opens or lanes.at == "sublayer":
            build.name(f"lanes.{site.layer if lanes.at == 'block' else site.index}", self.state)
        if site.part == "output" and lanes.output != "weighted":
            op = "join_lanes" if lanes.split else "sum_lanes"
            return build.node("output.lanes", op, {"lanes": self.state}, part=lanes)
        if not has_lanes(lanes, site):
            return hidden
        path = lanes_path(lanes, site)
        if isinstance(lanes.weights, Manifold):
            self.weights = self._manifold(lanes.weights, path, site)
        elif lanes.weights is not None:
            self.weights = self._hyper(lanes.weights, path, site)
        given = {"lanes": self.state, "weights": self.weights["read"]}
        return build.node(f"{path}.sum", "read_lanes", given, part=lanes)

    def writes(self, site: Site) -> bool:
        return self.lanes.at == "sublayer" or site.closes

    def write(self, site: Site, y: Value) -> None:
        """The lanes behind a sublayer: mixed, and y added to each."""
        build, lanes, path = self.builder, self.lanes, lanes_path(self.lanes, site)
        assert self.state is not None
        given = {"lanes": self.state, "weights": self.weights["mix"]}
        mixed = build.node(f"{path}.mixed", "mix_lanes", given, part=lanes)
        given = {"lanes": mixed, "y": y, "weights": self.weights["write"]}
        op = "write_pieces" if lanes.split else "write_lanes"
        self.state = build.node(f"{path}.written", op, given, part=lanes)

    def _hyper(self, weights: Hyper, path: str, site: Site) -> dict[str, Value]:
        build, dynamic, found = self.builder, weights.dynamic, {}
        assert self.state is not None
        if dynamic is not None:
            z = build.norm(f"{path}.norm", lane_norm(weights), self.state)
        for kind in lane_columns(self.lanes, site):
            at, given = f"{path}.{kind}", {}
            params = {"static": f"{at}.static"}
            if dynamic is not None:
                made = build.linear(f"{at}.linear", z, part=dynamic, params=at)
                given["dynamic"] = build.node(
                    f"{at}.activation",
                    "activation",
                    {"x": made},
                    attrs={"kind": dynamic.activation},
                    part=dynamic,
                )
                params["scale"] = f"{at}.scale" if kind == "write" else f"{path}.scale"
            found[kind] = build.node(
                f"{at}.weights", "lane_weights", given, params=params, part=weights
            )
        return found

    def _manifold(self, weights: Manifold, path: str, site: Site) -> dict[str, Value]:
        build = self.builder
        assert self.state is not None
        z = build.node(f"{path}.joined", "join_lanes", {"lanes": self.state}, part=weights)
        z = self._manifold_norm(weights, f"{path}.norm", z)
        found = {}
        for kind in lane_columns(self.lanes, site):
            at = f"{path}.{kind}"
            # The bias beside this weight is added behind the scale, not by the projection.
            matrix = {"weight": f"{at}.weight"}
            made = build.node(f"{at}.linear", "linear", {"x": z}, params=matrix, part=weights)
            params = {role: f"{at}.{role}" for role in ("scale", "bias")}
            op, attrs = self._gate(weights, kind)
            found[kind] = build.node(
                f"{at}.weights", op, {"z": made}, attrs=attrs, params=params, part=weights
            )
        return found

    def _manifold_norm(self, weights: Manifold, path: str, z: Value) -> Value:
        norm = lane_norm(weights)
        if weights.root == "inside":
            return self.builder.norm(path, norm, z)
        eps = {"eps": norm_eps(norm, self.builder.spec.blocks[0].norm)}
        return self.builder.node(path, "rms_divide", {"x": z}, attrs=eps, part=norm)

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
