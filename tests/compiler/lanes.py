"""Graphs of parallel lanes, built by hand, for the tests of what fuses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from multiway.compiler.graph.init import ONES
from multiway.compiler.graph.layer_graph import LayerGraph, Param, Record, Value
from multiway.compiler.graph.registry import registry
from multiway.compiler.graph.types import Tensor, sym
from multiway.compiler.lowering.containers import containers_for
from multiway.compiler.lowering.lower import lower

BALANCE = {"start": "softmax", "iterations": 4, "eps": 1e-6, "transpose": False}


@dataclass(kw_only=True)
class Stack:
    """kind: static, hc, frac or mhc. norms: how many norms read what a site reads."""

    kind: str
    sites: int = 3
    count: int = 4
    width: int = 8
    norm: str = "rms_norm"
    norms: int = 1
    raw: bool = False
    balance: Any = None
    taps: Sequence[str] = ()
    odd: str = ""  # an activation that is no tanh

    def graph(self) -> LayerGraph:
        self.made = LayerGraph(name="forward", params={})
        x = Tensor((sym("B"), sym("T"), self.width))
        (value,) = self.made.add(
            Record(path="inputs.x", op="input", attrs={"list": False}, outputs=(x,)), {}
        )
        op = "split_lanes" if self.kind == "frac" else "spread"
        lanes = self.node("open", op, {"x": value}, count=self.count)
        for i in range(self.sites):
            lanes = self.site(f"blocks.{i // 2}.site{i % 2}", lanes)
        out = self.close(lanes)
        taps = {f"tap{i}": Value(path) for i, path in enumerate(self.taps)}
        self.made.add(Record(path="outputs", op="output"), {"out": out, **taps})
        return self.made

    def node(
        self,
        path: str,
        op: str,
        arguments: dict[str, Value],
        shapes: dict[str, Sequence[int] | str] | None = None,
        **attrs: Any,
    ) -> Value:
        """Adds a node. shapes: of its parameters by role; a string is the path of an older one."""
        params = {}
        for role, shape in (shapes or {}).items():
            params[role] = shape if isinstance(shape, str) else f"{path}.{role}"
            if not isinstance(shape, str):
                new = Param(path=params[role], shape=tuple(shape), init=ONES)
                self.made.params[new.path] = new
        record = Record(path=path, op=op, attrs=registry()[op].full_attrs(attrs), params=params)
        return self.made.add(record, arguments)[0]

    def site(self, path: str, lanes: Value) -> Value:
        weights = getattr(self, f"_{'hc' if self.kind == 'frac' else self.kind}")(path, lanes)
        u = self.node(f"{path}.read", "read_lanes", {"lanes": lanes, "weights": weights[0]})
        w = self.width
        ys = [u] if self.raw else []
        for i in range(self.norms):
            shapes = {"weight": (w,), "bias": (w,)}
            normed = self.node(f"{path}.norm{i}", self.norm, {"x": u}, shapes, eps=1e-5)
            ys.append(self.node(f"{path}.linear{i}", "linear", {"x": normed}, {"weight": (w, w)}))
        y = ys[0]
        for i, other in enumerate(ys[1:]):
            y = self.node(f"{path}.add{i}", "add", {"a": y, "b": other})
        y = self.node(f"{path}.active", "activation", {"x": y}, kind="tanh")
        mixed = self.node(f"{path}.mix", "mix_lanes", {"lanes": lanes, "weights": weights[1]})
        op = "write_pieces" if self.kind == "frac" else "write_lanes"
        given = {"lanes": mixed, "y": y, "weights": weights[2]}
        return self.node(f"{path}.write", op, given)

    def close(self, lanes: Value) -> Value:
        if self.kind == "frac":
            x = self.node("output.join", "join_lanes", {"lanes": lanes})
        elif self.kind == "mhc":
            v = self._joined("output", lanes)
            read = self._gate("output", "read", v, 1.0, 1e-6)
            x = self.node("output.x", "read_lanes", {"lanes": lanes, "weights": read})
        else:
            x = self.node("output.x", "sum_lanes", {"lanes": lanes})
        return self.node("output.norm", self.norm, {"x": x}, {"weight": (self.width,)}, eps=1e-5)

    @property
    def reads(self) -> int:
        return self.count if self.kind == "frac" else 1

    def _static(self, path: str, lanes: Value) -> list[Value]:
        columns = (self.reads, self.count, 1)
        return [
            self.node(f"{path}.{name}_weights", "lane_weights", {}, {"static": (self.count, c)})
            for name, c in zip(("read", "mix", "write"), columns, strict=True)
        ]

    def _hc(self, path: str, lanes: Value) -> list[Value]:
        d = self.width // (self.count if self.kind == "frac" else 1)
        shapes = {"weight": (d,), "bias": (d,)}
        z = self.node(f"{path}.lane_norm", "layer_norm", {"x": lanes}, shapes, eps=1e-5)
        scales: list[Sequence[int] | str] = [(1,), f"{path}.read_weights.scale", (1,)]
        found = []
        for i, (name, c) in enumerate((("read", self.reads), ("mix", self.count), ("write", 1))):
            p = f"{path}.{name}"
            linear = self.node(f"{p}_linear", "linear", {"x": z}, {"weight": (c, d)})
            kind = "relu" if self.odd == f"{p}_tanh" else "tanh"
            active = self.node(f"{p}_tanh", "activation", {"x": linear}, kind=kind)
            roles = {"scale": scales[i], "static": (self.count, c)}
            found.append(self.node(f"{p}_weights", "lane_weights", {"dynamic": active}, roles))
        return found

    def _mhc(self, path: str, lanes: Value) -> list[Value]:
        v, n = self._joined(path, lanes), self.count
        read = self._gate(path, "read", v, 1.0, 1e-6)
        write = self._gate(path, "write", v, 2.0, 0.0)
        shapes = {"weight": (n * n, n * self.width)}
        z = self.node(f"{path}.mix_linear", "linear", {"x": v}, shapes)
        roles = {"scale": (1,), "bias": (n * n,)}
        attrs = {"count": n, **(self.balance or BALANCE)}
        mix = self.node(f"{path}.mix_weights", "sinkhorn", {"z": z}, roles, **attrs)
        return [read, mix, write]

    def _joined(self, path: str, lanes: Value) -> Value:
        joined = self.node(f"{path}.joined", "join_lanes", {"lanes": lanes})
        return self.node(f"{path}.lane_norm", "rms_norm", {"x": joined}, eps=1e-6)

    def _gate(self, path: str, name: str, v: Value, factor: float, eps: float) -> Value:
        n = self.count
        shapes = {"weight": (n, n * self.width)}
        z = self.node(f"{path}.{name}_linear", "linear", {"x": v}, shapes)
        roles = {"scale": (1,), "bias": (n,)}
        given = {"factor": factor, "eps": eps}
        return self.node(f"{path}.{name}_gate", "lane_gate", {"z": z}, roles, **given)


def parameters(
    graph: LayerGraph, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, torch.nn.Parameter]:
    """Random parameters by path; gains and static weights are near 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, param in graph.params.items():
        x = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        matrix = path.endswith("weight") and x.ndim == 2
        x = x / x.shape[-1] ** 0.5 if matrix else 0.3 * x
        if path.endswith(("norm.weight", "norm0.weight", "norm1.weight", "scale")):
            x = x + 1
        found[path] = torch.nn.Parameter(x.to(dtype))
    return found


def lowered(
    graph: LayerGraph, params: dict[str, torch.nn.Parameter], *, kernels: bool
) -> torch.fx.GraphModule:
    root = containers_for(params.items())
    if "blocks" not in dict(root.named_children()):
        root.add_module("blocks", torch.nn.Module())
    return lower(graph, root, kernels=kernels)
