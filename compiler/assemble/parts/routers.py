"""Routers: the gates of experts, what is known of them, and the losses that they bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiway.compiler.assemble.hiddens import Hiddens, padding_of, tokens_of
from multiway.compiler.assemble.parameters import Declared, start_of
from multiway.compiler.assemble.program import Program, join
from multiway.compiler.graph.init import Init
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.language.fields import Config
from multiway.specs.language.routing import (
    Balance,
    Capacity,
    Chosen,
    ExpertChoice,
    ExpertRouter,
    Hash,
    TopK,
)

STATISTICS = ("load", "probability", "z", "entropy", "dropped", "tokens")  # of router_statistics
TRAINING = "loss"  # the program that is trained


def declare(declared: Declared, path: str, experts: Chosen | None, *, width: int) -> None:
    """The router of a part that reads [B, T, width]; nothing where no router decides."""
    router = experts.router_ if experts else None
    if experts is None or router is None:
        return
    if router.kind == "cosine":
        assert router.width is not None
        declared.linear(f"{path}.project", out=router.width, width=width, bias=False, part=router)
        shape = (experts.count, router.width)
        declared.add(f"{path}.weight", shape, start_of("cosine_scores", "weight"), router)
        start = Init(kind="constant", value=router.temperature)
        declared.add(f"{path}.temperature", (1,), start, router)
    else:
        declared.linear(path, out=experts.count, width=width, bias=router.bias, part=router)
    if isinstance(experts, TopK) and experts.balance_bias is not None:
        start, bias = start_of("top_k_gates", "bias"), experts.balance_bias
        declared.add(f"{path}.balance", (experts.count,), start, bias, rate=bias.rate)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a router did, as values of the graph."""

    experts: Chosen
    params: str  # the path of its parameters
    values: dict[str, Value]


class Routers:
    """The routers of one program. Each is built where its part is first met.

    statistics: give what all routers do short names, for taps.
    """

    def __init__(self, program: Program, *, statistics: bool = False) -> None:
        self.program, self.statistics = program, statistics
        self.made: dict[str, Value] = {}
        self.observed: list[Observed] = []

    def gates(
        self, at: str, params: str, experts: Chosen, x: Value, seq: Hiddens, index: int | None
    ) -> Value:
        """The gates [B, T, experts] of a part: 0 for experts that a token does not go to.

        at: the path of the node. x: what the part reads. index: the segment that x is, None: all.
        """
        key = join(self.program.pass_name, at)
        if key not in self.made:
            self.made[key] = self._make(at, params, experts, x, seq, index)
        return self.made[key]

    def _make(
        self, at: str, params: str, experts: Chosen, x: Value, seq: Hiddens, index: int | None
    ) -> Value:
        program, logits, wanted = self.program, None, None
        padding = padding_of(program, seq, index)
        padded = {"padding": padding} if padding else {}
        if isinstance(experts, Hash):
            given = {"x": x, "tokens": tokens_of(program, seq, index)}
            attrs = {"count": experts.count, "seed": experts.seed}
            gates = program.node(at, "hash_gates", given, attrs=attrs, part=experts)
        else:
            assert experts.router_ is not None
            logits = self._logits(at, params, experts.router_, x)
            gates = self._scored(at, params, experts, logits, padded)
        if isinstance(experts, TopK) and experts.capacity is not None:
            wanted, gates = gates, self._limited(at, experts, experts.capacity, gates, padded)
        if self._is_watched(experts):
            known = {"gates": gates, "logits": logits, "wanted": wanted, "padding": padding}
            self._observe(at, params, experts, known)
        return gates

    def _logits(self, at: str, params: str, router: ExpertRouter, x: Value) -> Value:
        program = self.program
        if router.jitter and program.graph.name == TRAINING:
            attrs = {"eps": router.jitter}
            x = program.node(f"{at}.jitter", "jitter", {"x": x}, attrs=attrs, part=router)
        if router.kind == "cosine":
            x = program.linear(f"{at}.project", x, params=f"{params}.project", part=router)
            return program.node(
                f"{at}.logits", "cosine_scores", {"x": x}, params=params, part=router
            )
        return program.linear(f"{at}.logits", x, params=params, part=router)

    def _scored(
        self, at: str, params: str, experts: Chosen, logits: Value, padded: dict[str, Value]
    ) -> Value:
        program = self.program
        if isinstance(experts, ExpertChoice):
            attrs: dict[str, Any] = {"factor": experts.factor, "over": experts.over}
            given = {"logits": logits, **padded}
            return program.node(at, "expert_choice_gates", given, attrs=attrs, part=experts)
        assert isinstance(experts, TopK)
        attrs = {
            "k": experts.k,
            "score": experts.score,
            "normalise": experts.normalise,
            "scale": experts.scale,
        }
        if (groups := experts.groups) is not None:
            attrs |= {"groups": groups.count, "kept": groups.kept, "group_by": groups.by}
        bias = {"bias": f"{params}.balance"} if experts.balance_bias else {}
        at = f"{at}.wanted" if experts.capacity else at
        return program.node(
            at, "top_k_gates", {"logits": logits}, attrs=attrs, params=bias, part=experts
        )

    def _limited(
        self, at: str, experts: TopK, capacity: Capacity, gates: Value, padded: dict[str, Value]
    ) -> Value:
        attrs = {
            "k": experts.k,
            "factor": capacity.factor or 0.0,
            "slots": capacity.slots or 0,
            "over": capacity.over,
        }
        given = {"gates": gates, **padded}
        return self.program.node(at, "limit_experts", given, attrs=attrs, part=capacity)

    # Statistics

    def _is_watched(self, experts: Chosen) -> bool:
        if self.statistics:
            return True
        weights = (getattr(experts, name, None) for name in ("balance_loss", "balance_bias"))
        wants = any(weights) or getattr(experts, "z_loss", 0) > 0
        return wants and self.program.graph.name == TRAINING

    def _observe(
        self, at: str, params: str, experts: Chosen, given: Mapping[str, Value | None]
    ) -> None:
        program = self.program
        values = program.nodes(
            f"{at}.statistics",
            "router_statistics",
            {name: value for name, value in given.items() if value is not None},
            attrs={"score": getattr(experts, "score", "softmax")},
            part=experts,
        )
        found = dict(zip(STATISTICS, values, strict=True))
        for name, value in found.items():
            program.name(f"{at}.{name}", value)
        self.observed.append(Observed(experts=experts, params=params, values=found))

    # Losses

    def with_losses(self, loss: Value) -> tuple[Value, dict[str, Value]]:
        """The loss of a head with those of routers, and these alone by name."""
        metrics: dict[str, Value] = {}
        balances: dict[tuple[Balance, int], list[Observed]] = {}
        zs: dict[float, list[Observed]] = {}
        for each in self.observed:
            balance = getattr(each.experts, "balance_loss", None)
            if balance is not None:
                balances.setdefault((balance, each.experts.count), []).append(each)
            if weight := getattr(each.experts, "z_loss", 0):
                zs.setdefault(weight, []).append(each)
        for i, ((balance, _), found) in enumerate(balances.items()):
            name = f"balance_{i}" if i else "balance"
            attrs = {"rows": balance.rows, "layers": balance.layers}
            lists = {"loads": "load", "probabilities": "probability", "tokens": "tokens"}
            metrics[name] = self._of(f"losses.{name}", "balance_loss", found, lists, attrs, balance)
            loss = self._added(f"losses.{name}.added", loss, metrics[name], balance.weight)
        for i, (weight, found) in enumerate(zs.items()):
            name = f"z_{i}" if i else "z"
            lists = {"zs": "z", "tokens": "tokens"}
            part = found[0].experts
            metrics[name] = self._of(f"losses.{name}", "z_loss", found, lists, {}, part)
            loss = self._added(f"losses.{name}.added", loss, metrics[name], weight)
        return loss, metrics

    def _of(
        self,
        path: str,
        op: str,
        found: list[Observed],
        lists: dict[str, str],
        attrs: Mapping[str, str],
        part: Config,
    ) -> Value:
        given = {name: [each.values[value] for each in found] for name, value in lists.items()}
        return self.program.node(path, op, given, attrs=attrs, part=part)

    def _added(self, path: str, loss: Value, more: Value, weight: float) -> Value:
        given, attrs = {"a": more, "b": loss}, {"factor": weight}
        return self.program.node(path, "weighted_add", given, attrs=attrs)

    def loads(self) -> dict[str, Value]:
        """How many tokens went to each expert, by the path of the biases that this is to move."""
        return {
            f"{each.params}.balance": each.values["load"]
            for each in self.observed
            if getattr(each.experts, "balance_bias", None) is not None
        }


def is_statistic(name: str) -> bool:
    """Whether a name of a value is that of a statistic of a router."""
    path, _, last = name.rpartition(".")
    return last in STATISTICS and "router" in path.split(".")
