"""Lanes a second time: several residual streams that are read, mixed and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from second.body import ACTIVATIONS, Body


class Lanes:
    """The lanes of a spec's wiring, as a list of tensors [B, T, D] or [B, T, D / count]."""

    def __init__(self, body: Body) -> None:
        self.body, self.params, self.lanes = body, body.params, body.spec.wiring.lanes
        self.count = self.lanes.count
        self.manifold = self.lanes.weights.kind == "manifold"

    def opened(self, x: Tensor) -> list[Tensor]:
        return list(x.chunk(self.count, -1)) if self.lanes.split else [x] * self.count

    def closed(self, lanes: list[Tensor]) -> Tensor:
        if self.lanes.split:
            return torch.cat(lanes, -1)
        if self.lanes.output == "sum":
            return torch.stack(lanes).sum(0)
        weights = self.gates("output.lanes", "read", lanes).sigmoid() + self.lanes.weights.eps
        return self.weighed(weights[..., None, :], lanes)

    def around(
        self, path: str, lanes: list[Tensor], run: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """The lanes behind a sublayer (or block) `run`, whose weights stand at `path`."""
        make = self.of_manifold if self.manifold else self.of_hyper
        read, mix, write = make(path, lanes)
        if self.lanes.split:
            pieces = [self.weighed(read[..., i, None, :], lanes) for i in range(self.count)]
            made = run(torch.cat(pieces, -1)).chunk(self.count, -1)
        else:
            made = [run(self.weighed(read, lanes))] * self.count
        return [
            self.weighed(mix[..., k, None, :], lanes) + write[..., k, None] * made[k]
            for k in range(self.count)
        ]

    def weighed(self, weights: Tensor, lanes: list[Tensor]) -> Tensor:
        """The sum of lanes by weights [..., 1, lane]."""
        return torch.stack([weights[..., 0, j, None] * x for j, x in enumerate(lanes)]).sum(0)

    # Weights: read [.., rows, lane], mix [.., new lane, old lane], write [.., lane]

    def of_hyper(self, path: str, lanes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        dynamic, found = self.lanes.weights.dynamic, {}
        for what in ("read", "mix", "write"):
            rows = []
            for j, lane in enumerate(lanes):
                row = self.params[f"{path}.{what}.static"][j]
                row = row.expand(*lane.shape[:2], len(row))
                if dynamic is not None:
                    scale = f"{path}.write.scale" if what == "write" else f"{path}.scale"
                    raw = self.body.matrix(f"{path}.{what}", self.lane_normed(path, lane))
                    row = row + self.params[scale] * ACTIVATIONS[dynamic.activation](raw)
                rows.append(row)
            found[what] = torch.stack(rows, -1)  # the last axis: the lane that gives
        return found["read"], found["mix"], found["write"][..., 0, :]

    def lane_normed(self, path: str, lane: Tensor) -> Tensor:
        norm = self.lanes.weights.dynamic.norm
        if norm is not None:
            return self.body.normed(f"{path}.norm", norm, lane, self.body.spec.blocks[0].norm)
        lane = lane - lane.mean(-1, keepdim=True)
        lane = lane / ((lane**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return lane * self.params[f"{path}.norm.weight"] + self.params[f"{path}.norm.bias"]

    def gates(self, path: str, what: str, lanes: list[Tensor]) -> Tensor:
        """scale W z + bias, with z the norm of all lanes end to end."""
        norm, base, z = self.lanes.weights.norm, self.body.spec.blocks[0].norm, torch.cat(lanes, -1)
        eps = base.eps if norm is None or norm.eps is None else norm.eps
        if self.lanes.weights.root == "outside":
            z = z / ((z**2).mean(-1, keepdim=True).sqrt() + eps)
            z = z * self.params.get(f"{path}.norm.weight", 1.0)
        elif norm is None:
            z = z / ((z**2).mean(-1, keepdim=True) + base.eps).sqrt()
        else:
            z = self.body.normed(f"{path}.norm", norm, z, base)
        here = f"{path}.{what}"
        projected = z @ self.params[f"{here}.weight"].T
        return self.params[f"{here}.scale"] * projected + self.params[f"{here}.bias"]

    def of_manifold(self, path: str, lanes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.lanes.weights
        read = self.gates(path, "read", lanes).sigmoid() + weights.eps
        write = weights.write * self.gates(path, "write", lanes).sigmoid()
        raw = self.gates(path, "mix", lanes).unflatten(-1, (self.count, self.count))
        given = weights.sinkhorn
        matrix = sinkhorn(
            raw,
            iterations=20 if given is None else given.iterations,
            start="softmax" if given is None else given.start,
            eps=1e-6 if given is None else given.eps,
        )
        if not (given is not None and given.transpose):
            matrix = matrix.transpose(-1, -2)
        return read[..., None, :], matrix, write


def sinkhorn(raw: Tensor, *, iterations: int, start: str, eps: float) -> Tensor:
    """The matrix [.., from, to] of numbers [.., from, to]."""

    def rows(m: Tensor) -> Tensor:
        return m / (m.sum(-1, keepdim=True) + eps)

    def columns(m: Tensor) -> Tensor:
        return m / (m.sum(-2, keepdim=True) + eps)

    made: Any = (raw - raw.amax(-1, keepdim=True)).exp()
    if start == "softmax":
        made = columns(made / made.sum(-1, keepdim=True) + eps)
        iterations -= 1
    for _ in range(iterations):
        made = columns(rows(made))
    return made
