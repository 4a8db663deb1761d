"""Random routings, with every key of `experts`; a test fails for a key that is never drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from wiring_strategies import seldom, sometimes

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mappings = dict[str, Any]


@st.composite
def experts(
    draw: Draw, *, modalities: Sequence[str], ids: bool, where: Sequence[str], shared: bool
) -> Mappings:
    """A routing. ids: whether all inputs are token ids. shared: whether the part is an ffn."""
    if draw(st.integers(0, 4)) < 2:
        return draw(chosen(ids=ids, shared=shared))
    found: Mappings = {"route": "modality"}
    if draw(seldom(st.just(True), False)):
        found["ways"] = draw(ways(modalities))
    if len(modalities) > 1 and draw(st.booleans()):
        found["fused"] = draw(fused(modalities, where))
    if draw(seldom(st.just(True), False)):
        found["inside"] = draw(chosen(ids=ids, shared=shared))
    return found


@st.composite
def ways(draw: Draw, modalities: Sequence[str]) -> Mappings:
    """Every modality in one of two ways; a way with none is not there."""
    found: Mappings = {}
    for modality in modalities:
        found.setdefault(draw(st.sampled_from(["some", "others"])), []).append(modality)
    return found


@st.composite
def fused(draw: Draw, modalities: Sequence[str], where: Sequence[str]) -> Mappings:
    order = draw(st.permutations(list(modalities)))
    when = {"when": order[: draw(st.integers(2, len(order)))]}
    test = draw(st.sampled_from([None, *where]))
    return when | ({} if test is None else {"where": test})


def chosen(*, ids: bool, shared: bool) -> st.SearchStrategy[Mappings]:
    """Experts that a router chooses among, or a hash."""
    routes = [top_k(), expert_choice()] + ([hashes()] if ids else [])
    more = sometimes(shared=SHARED) if shared else st.just({})
    return st.builds(lambda found, more: found | more, st.one_of(routes), more)


SHARED = st.builds(
    lambda hidden, more: {"hidden": hidden} | more,
    st.sampled_from([3, "width"]),
    sometimes(gate=st.booleans()),
)
JITTER = sometimes(jitter=st.sampled_from([0, 0.1]))
ROUTER = st.sampled_from(["linear"]) | st.builds(
    lambda kind, jitter: kind | jitter,
    st.builds(lambda more: {"kind": "linear"} | more, sometimes(bias=st.booleans()))
    | st.builds(
        lambda width, more: {"kind": "cosine", "width": width} | more,
        st.integers(2, 4),  # in one dimension all angles are alike
        sometimes(temperature=st.sampled_from([0.3, 1])),
    ),
    JITTER,
)
OVER = st.sampled_from(["row", "batch"])
APART = st.sampled_from(["apart", "together"])
WEIGHT = st.sampled_from([0, 0.01, 0.5])
CAPACITY = st.builds(
    lambda size, more: size | more,
    st.sampled_from([{"factor": 0.5}, {"factor": 1.25}, {"slots": 1}, {"slots": 2}]),
    sometimes(over=OVER),
)
BALANCE = st.builds(
    lambda weight, more: {"weight": weight} | more, WEIGHT, sometimes(rows=APART, layers=APART)
)


@st.composite
def top_k(draw: Draw) -> Mappings:
    count = draw(st.integers(1, 4))
    found: Mappings = {"route": "top_k", "count": count, "k": draw(st.integers(1, count))}
    if draw(seldom(st.just(True), False)):
        groups = draw(st.sampled_from([g for g in (1, 2, 4) if count % g == 0]))
        size = count // groups
        kept = draw(st.integers(-(-found["k"] // size), groups))
        by = ["max", "top_2_sum"] if size > 1 else ["max"]
        found["groups"] = {"count": groups, "kept": kept, "by": draw(st.sampled_from(by))}
    if draw(seldom(st.just(True), False)):
        found |= {"capacity": draw(CAPACITY), "acausal": True}
    more = sometimes(
        score=st.sampled_from(["softmax", "sigmoid"]),
        normalise=st.booleans(),
        scale=st.sampled_from([1, 2.5]),
        router=ROUTER,
        balance_loss=BALANCE,
        balance_bias=st.just({"rate": 0.001}),
        z_loss=WEIGHT,
    )
    return found | draw(more)


@st.composite
def expert_choice(draw: Draw) -> Mappings:
    count = draw(st.integers(1, 3))
    factor = draw(st.sampled_from([f for f in (0.5, 1, 1.5, 2) if f <= count]))
    found = {"route": "expert_choice", "count": count, "factor": factor, "acausal": True}
    return found | draw(sometimes(over=OVER, router=ROUTER, z_loss=WEIGHT))


@st.composite
def hashes(draw: Draw) -> Mappings:
    found = {"route": "hash", "count": draw(st.integers(1, 3))}
    return found | draw(sometimes(seed=st.integers(0, 9)))


def by_router(routing: Mapping[str, Any] | None) -> bool:
    """Whether a drawn routing has experts in it."""
    if routing is None:
        return False
    return routing["route"] != "modality" or "inside" in routing
