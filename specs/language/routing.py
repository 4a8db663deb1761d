"""Routing: which copy of a part, or which of its experts, a token goes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from multiway.specs.errors import Report
from multiway.specs.language.fields import Config, Count, Kinds, Offset, Real, Test, key


@dataclass(frozen=True, kw_only=True)
class Fused(Config):
    """One further way that serves all modalities together in some layers (BEiT-3's VL-FFN)."""

    required = ("when",)

    where: Test = key("the layers that have it, e.g. layer >= depth - 3", default=True)
    when: tuple[str, ...] = key("the modalities that must all be present", default=())


@dataclass(frozen=True, kw_only=True)
class ExpertRouter(Config):
    """How the scores of experts are made of what a part reads."""

    short = "kind"

    kind: Literal["linear", "cosine"] = key(
        "linear: a matrix; cosine: angles to a learned vector of each, in a narrower space",
        default="linear",
    )
    bias: bool = key("linear: a bias", default=False)
    width: Count | None = key("cosine: width of the space in which angles are taken")
    temperature: Real = key("cosine: initial value of what cosines are divided by", default=0.3)
    jitter: Real = key("in training, what it reads times random numbers from 1 -+ this", default=0)

    def check(self, report: Report) -> None:
        only = {"bias": "linear", "width": "cosine", "temperature": "cosine"}
        for name, kind in only.items():
            if self.node.get(name) is not None and self.kind != kind:
                message = f"{name} has no meaning for a {self.kind} router"
                report.add("unused-key", message, span=self.node.key_span(name))
        if self.kind == "cosine" and self.width is None:
            report.add(
                "missing-key",
                "a cosine router needs 'width'",
                span=self.span("kind"),
                expected="width: half the number of experts, for instance",
            )
        if self.temperature <= 0:
            span, message = self.span("temperature"), f"temperature is {self.temperature:g}"
            report.add("too-small", message, span=span, expected="more than 0")
        if not 0 <= self.jitter < 1:
            report.add(
                "out-of-range",
                f"jitter is {self.jitter:g}",
                span=self.span("jitter"),
                expected="at least 0, less than 1",
            )


@dataclass(frozen=True, kw_only=True)
class Groups(Config):
    """Experts in groups of neighbours, of which a token may use only some."""

    required = ("count", "kept")

    count: Count = key("number of groups", default=1)
    kept: Count = key("groups that a token may use", default=1)
    by: Literal["max", "top_2_sum"] = key(
        "what a group is worth: its best score, or the sum of its two best", default="max"
    )


@dataclass(frozen=True, kw_only=True)
class Capacity(Config):
    """How many tokens an expert takes at most. What is beyond is dropped: no expert adds to it."""

    factor: Real | None = key("places over those needed if all experts got as many")
    slots: Count | None = key("places of an expert, whatever the number of tokens")
    over: Literal["row", "batch"] = key("whose tokens compete for places", default="row")

    def check(self, report: Report) -> None:
        if (self.factor is None) == (self.slots is None):
            neither = self.factor is None
            report.add(
                "missing-key" if neither else "unused-key",
                f"capacity says {'neither factor nor' if neither else 'both factor and'} slots",
                span=self.node.span,
                expected="one of factor (1.25, for instance), slots (64)",
            )
        elif self.factor is not None and self.factor <= 0:
            report.add(
                "too-small",
                f"the capacity factor is {self.factor:g}",
                span=self.span("factor"),
                expected="more than 0; 1.25, for instance",
            )


@dataclass(frozen=True, kw_only=True)
class Shared(Config):
    """An expert that every token goes to, beside those that a router chooses."""

    required = ("hidden",)

    hidden: Count = key("hidden width", default=0)
    gate: bool = key("times the sigmoid of a learned score of the token", default=False)


@dataclass(frozen=True, kw_only=True)
class Balance(Config):
    """A loss that is least where all experts are used alike."""

    required = ("weight",)

    weight: Real = key("what it is multiplied by in the loss", default=0)
    rows: Literal["apart", "together"] = key(
        "whether experts are to be used alike in each row, or over the batch", default="together"
    )
    layers: Literal["apart", "together"] = key(
        "whether in each layer, or over all layers", default="apart"
    )

    def check(self, report: Report) -> None:
        _not_negative(self, "weight", report)


@dataclass(frozen=True, kw_only=True)
class BalanceBias(Config):
    """Balance without a loss: numbers beside the scores, moved after every step."""

    required = ("rate",)

    rate: Real = key("by how much a step moves them", default=0)

    def check(self, report: Report) -> None:
        _not_negative(self, "rate", report)


@dataclass(frozen=True, kw_only=True)
class Chosen(Config):
    """What all routings with experts have: their number, and one beside them."""

    count: Count = key("number of experts", default=1)
    shared: Shared | None = key("an expert for all tokens (ffn only)")

    @property
    def most(self) -> int:
        """How many experts a token goes to, at most; 0 where nothing is known."""
        raise NotImplementedError

    @property
    def used(self) -> float:
        """How many experts a token goes to on average."""
        return self.most

    @property
    def causal(self) -> bool:
        """Whether what a token gets depends on it and earlier ones only."""
        return True

    @property
    def router_(self) -> ExpertRouter | None:
        """How scores are made, where there are any."""
        return None


@dataclass(frozen=True, kw_only=True)
class TopK(Chosen):
    """Every token takes the k experts that score highest with it."""

    required: ClassVar[tuple[str, ...]] = ("route", "count", "k")

    route: Literal["top_k"] = key("top_k", default="top_k")
    k: Count = key("experts of a token", default=1)
    score: Literal["softmax", "sigmoid"] = key(
        "softmax over all experts, or a sigmoid of each", default="softmax"
    )
    normalise: bool = key("gates of a token are made to sum to 1", default=False)
    scale: Real = key("what gates are multiplied by", default=1)
    router: ExpertRouter | None = key("how scores are made; default: a matrix")
    groups: Groups | None = key("groups of experts, of which a token may use some")
    capacity: Capacity | None = key("tokens of an expert; default: any number (dropless)")
    balance_loss: Balance | None = key("a loss for even use")
    balance_bias: BalanceBias | None = key("even use without a loss")
    z_loss: Real = key("weight of a loss for small logits", default=0)
    acausal: bool = key("with capacity: a causal head may use it all the same", default=False)

    @property
    def most(self) -> int:
        return self.k

    @property
    def causal(self) -> bool:
        return self.capacity is None

    @property
    def router_(self) -> ExpertRouter | None:
        return self.router or ExpertRouter(node=self.node)

    def check(self, report: Report) -> None:
        _not_negative(self, "z_loss", report)
        if self.k > self.count:
            report.add(
                "too-many-experts",
                f"a token cannot go to {self.k} of {self.count} experts",
                span=self.span("k"),
                expected=f"1 to {self.count}",
                notes=(("experts", f"at {self.span('count')}"),),
            )
        elif self.groups is not None:
            self._check_groups(self.groups, report)

    def _check_groups(self, groups: Groups, report: Report) -> None:
        if self.count % groups.count:
            report.add(
                "indivisible",
                f"{self.count} experts cannot be in {groups.count} groups",
                span=groups.span("count"),
                expected="a divisor of the number of experts",
                notes=(("experts", f"at {self.span('count')}"),),
            )
            return
        size = self.count // groups.count
        if groups.kept > groups.count:
            message = f"{groups.kept} of {groups.count} groups cannot be kept"
            expected = f"1 to {groups.count}"
            report.add("out-of-range", message, span=groups.span("kept"), expected=expected)
        elif self.k > groups.kept * size:
            report.add(
                "too-many-experts",
                f"a token cannot go to {self.k} of {groups.kept * size} experts in the groups kept",
                span=self.span("k"),
                expected=f"1 to {groups.kept * size}, or more groups kept",
                notes=(("groups", f"at {groups.node.span}"),),
            )
        elif groups.by == "top_2_sum" and size < 2:
            message, expected = "a group of one expert has no two best", "by: max, or fewer groups"
            report.add("out-of-range", message, span=groups.span("by"), expected=expected)


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Chosen):
    """Every expert takes the tokens that score highest with it."""

    required: ClassVar[tuple[str, ...]] = ("route", "count", "factor")

    route: Literal["expert_choice"] = key("expert_choice", default="expert_choice")
    factor: Real = key("experts of a token on average", default=0)
    over: Literal["row", "batch"] = key("which tokens an expert chooses from", default="row")
    router: ExpertRouter | None = key("how scores are made; default: a matrix")
    z_loss: Real = key("weight of a loss for small logits", default=0)
    acausal: bool = key("a causal head may use it all the same", default=False)

    @property
    def most(self) -> int:
        return 0

    @property
    def used(self) -> float:
        return self.factor

    @property
    def causal(self) -> bool:
        return False

    @property
    def router_(self) -> ExpertRouter | None:
        return self.router or ExpertRouter(node=self.node)

    def check(self, report: Report) -> None:
        _not_negative(self, "z_loss", report)
        if not 0 < self.factor <= self.count:
            report.add(
                "out-of-range",
                f"a token cannot go to {self.factor:g} of {self.count} experts on average",
                span=self.span("factor"),
                expected=f"more than 0, at most {self.count}",
            )


@dataclass(frozen=True, kw_only=True)
class Hash(Chosen):
    """The number of a token decides, by a fixed rule."""

    required: ClassVar[tuple[str, ...]] = ("route", "count")

    route: Literal["hash"] = key("hash", default="hash")
    seed: Offset = key("chooses among rules", default=0)

    @property
    def most(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Modality(Config):
    """The modality of a token decides."""

    required: ClassVar[tuple[str, ...]] = ("route",)

    route: Literal["modality"] = key("modality", default="modality")
    ways: dict[str, tuple[str, ...]] = key(
        "names of ways, each with the modalities that take it; default: one for each", default={}
    )
    fused: Fused | None = key("a way shared by several modalities")
    inside: (
        Annotated[TopK | ExpertChoice | Hash, Kinds(TopK, ExpertChoice, Hash, tag="route")] | None
    ) = key("every way is a set of experts: how a token of it is routed further")

    def __hash__(self) -> int:
        return hash((tuple(self.ways.items()), self.fused, self.inside))

    def way_of(self, modality: str) -> str:
        """The way that the tokens of a modality take."""
        found = (way for way, modalities in self.ways.items() if modality in modalities)
        return next(found, modality)


Experts = Modality | TopK | ExpertChoice | Hash
Routing = Annotated[Experts, Kinds(Modality, TopK, ExpertChoice, Hash, tag="route")]


def chosen(experts: Experts | None) -> TopK | ExpertChoice | Hash | None:
    """How a token of a part, or of each of its ways, is sent to experts; None: by no router."""
    return experts.inside if isinstance(experts, Modality) else experts


def _not_negative(part: Config, name: str, report: Report) -> None:
    value = getattr(part, name)
    if value < 0:
        report.add("too-small", f"{name} is {value:g}", span=part.span(name), expected=">= 0")
