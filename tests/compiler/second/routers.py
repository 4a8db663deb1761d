"""Routers a second time: one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Slots = list[tuple[int, int, int, int]]  # (rank of the choice, row, token, expert)


def gates(
    params: Mapping[str, Tensor],
    path: str,
    experts: Any,
    x: Tensor,
    ids: Tensor | None,
    there: Tensor,
) -> Tensor:
    """Gates [B, n, X] of tokens x [B, n, D]. there: [B, n], which of them are not padded."""
    if experts.route == "hash":
        assert ids is not None
        return hashed(ids, experts).to(x.dtype)
    scores = logits(params, path, experts.router, x)
    if experts.route == "expert_choice":
        return choices_of_experts(scores.softmax(-1), experts, there)
    return choices_of_tokens(params, path, experts, scores, there)


def hashed(ids: Tensor, experts: Any) -> Tensor:
    a, m = 1327217885, 2**31 - 1
    found = torch.zeros(*ids.shape, experts.count)
    for place in torch.cartesian_prod(*map(torch.arange, ids.shape)).tolist():
        number = ((int(ids[tuple(place)]) + 1) * a + experts.seed) % m
        found[(*place, number * a % m % experts.count)] = 1
    return found


def logits(params: Mapping[str, Tensor], path: str, router: Any, x: Tensor) -> Tensor:
    weight = params[f"{path}.weight"]
    if router is None or router.kind == "linear":
        return x @ weight.T + params.get(f"{path}.bias", 0.0)
    x = x @ params[f"{path}.project.weight"].T
    lengths = x.norm(dim=-1)[..., None] * weight.norm(dim=-1)
    lengths = lengths.clamp(min=1e-24)  # zeros are at no angle to anything: 0
    return x @ weight.T / lengths / params[f"{path}.temperature"].clamp(min=0.01)


def choices_of_tokens(
    params: Mapping[str, Tensor], path: str, experts: Any, z: Tensor, there: Tensor
) -> Tensor:
    scores = z.softmax(-1) if experts.score == "softmax" else torch.sigmoid(z)
    ranked = scores.detach() + params.get(f"{path}.balance", torch.zeros(experts.count)).detach()
    kept = torch.zeros_like(scores)
    for b, t in torch.cartesian_prod(*map(torch.arange, z.shape[:2])).tolist():
        for e in best(ranked[b, t].tolist(), allowed(ranked[b, t].tolist(), experts), experts.k):
            kept[b, t, e] = 1
    found = scores * kept
    if experts.normalise:
        # 1e-20, as top_k_gates has it, counts where every kept sigmoid is as small.
        found = found / (found.sum(-1, keepdim=True) + 1e-20)
    found = found * experts.scale
    return found if experts.capacity is None else limited(found, experts, there)


def best(values: list[float], among: list[int], count: int) -> list[int]:
    return sorted(among, key=lambda i: -values[i])[:count]


def allowed(values: list[float], experts: Any) -> list[int]:
    """The experts of the groups that are worth most."""
    every = list(range(experts.count))
    if experts.groups is None:
        return every
    size = experts.count // experts.groups.count
    members = [every[i : i + size] for i in range(0, experts.count, size)]
    two = 2 if experts.groups.by == "top_2_sum" else 1
    worth = [sum(sorted((values[i] for i in group), reverse=True)[:two]) for group in members]
    kept = best(worth, list(range(len(members))), experts.groups.kept)
    return [i for g in kept for i in members[g]]


def limited(found: Tensor, experts: Any, there: Tensor) -> Tensor:
    kept = torch.zeros_like(found)
    for rows in competing(found.shape[0], experts.capacity.over):
        slots: Slots = []
        for b in rows:
            for t in range(found.shape[1]):
                order = best(found[b, t].tolist(), list(range(experts.count)), experts.k)
                wanted = [e for e in order if found[b, t, e] > 0 and there[b, t]]
                slots += [(rank, b, t, e) for rank, e in enumerate(wanted)]
        room = places(experts, int(there[rows].sum()))
        served = [0] * experts.count
        for _, b, t, e in sorted(slots):
            served[e] += 1
            if served[e] <= room:
                kept[b, t, e] = 1
    return found * kept


def places(experts: Any, tokens: int) -> float:
    capacity = experts.capacity
    return capacity.slots or up(capacity.factor * experts.k * tokens / experts.count)


def up(value: float) -> int:
    return -int(-value // 1)


def competing(rows: int, over: str) -> list[list[int]]:
    return [list(range(rows))] if over == "batch" else [[b] for b in range(rows)]


def choices_of_experts(scores: Tensor, experts: Any, there: Tensor) -> Tensor:
    kept = torch.zeros_like(scores)
    for rows in competing(scores.shape[0], experts.over):
        tokens = [(b, t) for b in rows for t in range(scores.shape[1]) if there[b, t]]
        for e in range(experts.count):
            values = [float(scores[b, t, e]) for b, t in tokens]
            count = up(experts.factor * len(tokens) / experts.count)
            for i in best(values, list(range(len(tokens))), count):
                kept[(*tokens[i], e)] = 1
    return scores * kept


class Stacks(Mapping[str, Tensor]):
    """Parameters by path; `up@3.weight` is what expert 3 has of `up.weight`."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.params = params

    def __getitem__(self, path: str) -> Tensor:
        if "@" not in path:
            return self.params[path]
        part, _, rest = path.partition("@")
        number, _, role = rest.partition(".")
        return self.params[f"{part}.{role}"][int(number)]

    def __iter__(self) -> Any:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)


Run = Callable[[str, Tensor], Tensor]
