"""Random wirings, with every key of the section in combinations that mean something.

`drawn_keys` says what a wiring holds; a test fails for a key that is never drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from multiway.specs.data_folders import wiring_files

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mappings = dict[str, Any]

ACTIVATIONS = ["gelu", "gelu_tanh", "silu", "relu", "relu_squared", "tanh", "sigmoid"]
KIND = st.sampled_from(["layer_norm", "rms_norm"])
EPS = st.sampled_from([1e-6, 1e-5, 1e-2])


def sometimes(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Mappings]:
    """A mapping that holds any of the keys."""
    return st.fixed_dictionaries({}, optional=keys)


def seldom(strategy: st.SearchStrategy[Any], default: Any) -> st.SearchStrategy[Any]:
    """The default three times in four."""
    return st.integers(0, 3).flatmap(lambda n: strategy if n == 0 else st.just(default))


NORM = st.just(True) | sometimes(kind=KIND, eps=EPS, weight=st.booleans(), bias=st.booleans())
INITIAL = st.sampled_from(
    [
        "zeros",
        "ones",
        {"kind": "normal", "std": "1 / 2"},
        {"kind": "constant", "value": "1 / depth"},
    ]
)
INIT = st.dictionaries(st.sampled_from(["blocks.*", "*.mix.*", "*.edges.*"]), INITIAL, max_size=2)


@st.composite
def wirings(draw: Draw, *, width: int, depth: int, values: bool) -> str | Mappings:
    """A wiring for a model. values: whether the projected values of all blocks are of one width."""
    kind = draw(st.sampled_from(["named", "mixes", "mixes", "mixes", "lanes"]))
    if kind == "named":
        return draw(named(width=width, depth=depth, values=values))
    edges: list[Mappings] = []
    if kind == "lanes":
        found: Mappings = {"lanes": draw(lanes(width))}
        places = ["input", "output"]
    else:
        found = {"mix": draw(mixes(width, depth))} if draw(st.booleans()) else {}
        edges = draw(further(width, depth, found.get("mix")))
        places = ["input", "output", "sum"]
    if values and draw(seldom(st.just(True), False)):
        edges.append(draw(value_mixes(depth, generated=kind != "lanes")))
        if draw(seldom(st.just(True), False)):
            edges.append(draw(value_mixes(depth, generated=kind != "lanes")) | {"add": True})
    found |= {"edges": edges} if edges else {}
    # Where sums stand for the residual stream everywhere, nothing else can join it.
    plain = kind == "lanes" or any(
        each.get("of") == "change" and "r" in each["streams"] and not each.get("add")
        for each in [found.get("mix", {"streams": []}), *edges]
    )
    if plain:
        places = ["input", "output"]
    # Without any norm (rezero has none) activations of random weights may grow beyond what float64
    # resolves inside a softmax.
    subsets = st.lists(st.sampled_from(places), unique=True, min_size=1, max_size=3)
    found |= draw(
        sometimes(
            norms=subsets,
            residual=residuals(plain=plain),
            init=INIT,
            doc=st.just("drawn"),
            cite=st.just(["drawn2026"]),
        )
    )
    mudd = "mix" in found and "lanes" not in found and learned(found["mix"])
    return found | ({"use": "mudd"} if mudd and draw(seldom(st.just(True), False)) else {})


def learned(mix: Mappings) -> bool:
    """Whether the keys of MUDD may lie under a mix: static and generator said, nothing else."""
    return bool({"static", "generator"} <= mix.keys())


@st.composite
def named(draw: Draw, *, width: int, depth: int, values: bool) -> str | Mappings:
    """A wiring with a file, smaller where it would be large."""
    names = [name for name in sorted(wiring_files()) if values or name != "value_residual"]
    if depth == 1:  # nobody reads there
        names = [name for name in names if name not in ("unet", "x0")]
    name = draw(st.sampled_from(names))
    smaller: dict[str, Mappings] = {
        "mhar": {"mix": {"router": {"groups": 2}}},
        "mhc": {"lanes": {"count": 2}},
        "laurel": {"residual": {"low_rank": {"rank": 2}}},
        "mudd": {"mix": {"generator": {"hidden": 3}}},
        "mudd_prepost": {"mix": {"generator": {"hidden": 3}}},
    }
    return {"use": name, **smaller[name]} if name in smaller else name


# Mixes

WAYS = ["q", "k", "v", "x", "r"]


@st.composite
def stream_lists(draw: Draw) -> list[str]:
    found = draw(st.lists(st.sampled_from(WAYS), unique=True, min_size=1, max_size=4))
    return [s for s in found if s not in "qkv"] if "x" in found else found


@st.composite
def mixes(draw: Draw, width: int, depth: int, streams: Sequence[str] = ()) -> Mappings:
    """A mix of hiddens. `streams`: those that it must have."""
    found: Mappings = {"streams": list(streams) or draw(stream_lists())}
    ends = "r" in found["streams"]  # then the output reads too, whatever the depth
    at = draw(st.sampled_from(["block", "block", "sublayer"]))
    found |= {"at": at} if at == "sublayer" or draw(st.booleans()) else {}
    found |= draw(seldom(sometimes(first=st.booleans(), period=st.sampled_from([2, 3, 99])), {}))
    tests = ["layer > 0", "2 * layer >= depth", "layer == depth"] if ends else []
    tests += ["sublayer > 1"] if ends and at == "sublayer" and depth > 1 else []
    tests += ["layer > 0"] if depth > 1 and "period" not in found else []
    if tests:
        found |= draw(seldom(sometimes(where=st.sampled_from(tests)), {}))
    found |= draw(histories(at))
    found |= draw(weights(width, found))
    if "source_norm" not in found and "sources" not in found and at == "block":
        found |= draw(seldom(sometimes(source_norm=NORM), {}))
    normed = st.lists(st.sampled_from(found["streams"]), unique=True, min_size=1)
    sum_norm = st.builds(
        lambda more, streams: more | {"streams": streams},
        sometimes(kind=KIND, eps=EPS, weight=st.booleans(), bias=st.booleans()),
        normed,
    )
    more = {"sum_norm": sum_norm, "gate": GATE, "add": st.booleans(), "first_block": FIRST_BLOCK}
    return found | draw(seldom(sometimes(**more), {}))


GATE = st.just(True) | sometimes(init=INITIAL)
FIRST_BLOCK = st.sampled_from(["one_norm", "three_norms"])


@st.composite
def histories(draw: Draw, at: str) -> Mappings:
    """What is read: hiddens or changes, in groups, some of them, or one by one."""
    kind = draw(st.sampled_from(["all", "all", "change", "change", "dilation", "listed"]))
    if kind == "change":
        grouping = sometimes(group=st.sampled_from([1, 2, 3]), partial=st.booleans())
        return {"of": "change"} | draw(grouping)
    if kind == "dilation":
        return {"dilation": draw(st.sampled_from([2, 3]))} | draw(sometimes(of=st.just("hidden")))
    if kind == "all":
        return {}
    listed = [["embedding", "newest"], ["newest", -1], ["newest"], ["max(layer - 2, embedding)"]]
    listed += [["layer // 2 - 1", "newest", "embedding"]]
    listed += [["max(sublayer - 3, embedding)", "layer - 1"]] if at == "sublayer" else []
    found = {"sources": draw(st.sampled_from(listed))}
    return found | draw(seldom(sometimes(of=st.sampled_from(["hidden", "change"])), {}))


@st.composite
def weights(draw: Draw, width: int, mix: Mappings) -> Mappings:
    """What gives the weights: static, generator or both, a router, a fixed number."""
    kind = draw(st.sampled_from(["learned", "learned", "learned", "router", "fixed"]))
    if kind == "router":
        groups = st.sampled_from([n for n in (1, 2, 3, 4, 6) if width % n == 0])
        return {
            "router": draw(st.just(True) | sometimes(groups=groups, eps=EPS, weight=st.booleans()))
        }
    if kind == "fixed":
        return {"fixed": draw(st.sampled_from(["1 / sources", 0.5, "1 / (sources + depth)"]))}
    two = mix.get("sources") in ([["embedding", "newest"], ["newest", -1]])
    if two and len(mix["streams"]) == 1 and not mix.get("first") and draw(st.booleans()):
        return {"static": draw(COMPLEMENT), "generator": False}
    found = {"static": draw(STATIC), "generator": draw(GENERATOR | st.just(False))}
    return found if found["generator"] else found | {"static": found["static"] or True}


STATIC = st.booleans() | sometimes(
    init=INITIAL, columns=st.sampled_from(["read", "all"]), complement=st.just(False)
)
COMPLEMENT = st.builds(
    lambda more: {"complement": True, **more},
    sometimes(init=INITIAL, columns=st.just("read")),
)
GENERATOR = st.builds(
    lambda hidden, more: {"hidden": hidden, **more},
    st.sampled_from([3, "ways * sources * (2 if last else 1)"]),
    sometimes(norm=NORM, activation=st.sampled_from(ACTIVATIONS), init=INITIAL),
)


@st.composite
def further(draw: Draw, width: int, depth: int, mix: Mappings | None) -> list[Mappings]:
    """Edges behind a mix. They add their sums, or stand for a stream that nobody mixed before."""
    found: list[Mappings] = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2] if mix else [0, 1, 1, 2]))):
        mixed = {s for each in ([mix] if mix else []) + found for s in each["streams"]}
        free = [stream for stream in WAYS if stream not in mixed]
        if "x" in mixed or "x" in free:  # which somebody must read
            free = [s for s in free if not {"q", "k", "v"} <= mixed | {s}]
        if free and draw(st.booleans()):
            found.append(draw(mixes(width, depth, [draw(st.sampled_from(free))])))
        else:
            apart = {"q", "k", "v"} <= mixed
            more = mixes(width, depth, ["r"]) if apart else mixes(width, depth)
            found.append(draw(more) | {"add": True})
    return found


@st.composite
def value_mixes(draw: Draw, depth: int, *, generated: bool) -> Mappings:
    """A mix of projected values."""
    found: Mappings = {"streams": ["value"]}
    two = [[0, "newest"], ["max(layer - 1, 0)", "newest"]]
    listed = [*two, ["newest"], ["layer // 2", "newest"], ["layer // 2"]]
    found |= draw(sometimes(sources=st.sampled_from(listed)))
    found |= draw(seldom(sometimes(first=st.booleans(), period=st.just(2)), {}))
    found |= {} if "sources" in found else draw(seldom(sometimes(dilation=st.just(2)), {}))
    if depth > 1 and "period" not in found:
        tests = st.sampled_from(["layer > 0", "layer == depth - 1"])
        found |= draw(seldom(sometimes(where=tests), {}))
    kind = draw(st.sampled_from(["static", "generator", "fixed", "complement"]))
    if kind == "complement" and not found.get("first") and found.get("sources") in two:
        found |= {"static": draw(COMPLEMENT)}
    elif kind == "fixed":
        found |= {"fixed": "1 / sources"}
    elif kind == "generator" and generated:
        found |= {"static": draw(STATIC), "generator": draw(GENERATOR)}
    else:
        found |= {"static": draw(STATIC) or True}
    return found | draw(seldom(sometimes(gate=GATE, add=st.booleans()), {}))


# Residuals and lanes


@st.composite
def residuals(draw: Draw, *, plain: bool) -> Mappings:
    """plain: a gain at most."""
    gain = st.sampled_from(["sublayer", "channel"]) | st.builds(
        lambda over, more: {"over": over, **more},
        st.sampled_from(["sublayer", "channel"]),
        sometimes(init=INITIAL),
    )
    found = draw(sometimes(gain=gain))
    if plain:
        return found
    found |= draw(sometimes(low_rank=st.builds(lambda n: {"rank": n}, st.integers(1, 3))))
    keeps = {"keep": st.sampled_from([0.5, "sqrt(layer + 1)", "1 / depth"])}
    return found | draw(sometimes(balance=st.booleans()) | sometimes(**keeps))


def lanes(width: int) -> st.SearchStrategy[Mappings]:
    pieces = st.sampled_from([n for n in (1, 2, 3, 4) if width % n == 0])
    split = st.builds(
        lambda count, weights: {"count": count, "split": True, "weights": weights}, pieces, HYPER
    )
    copies = st.builds(
        lambda count, weights, more: {"count": count, "weights": weights, **more},
        st.sampled_from([1, 2, 3]),
        HYPER,
        sometimes(split=st.just(False), output=st.just("sum")),
    )
    gated = st.builds(
        lambda count, weights, more: {"count": count, "weights": weights, **more},
        st.sampled_from([1, 2, 3]),
        MANIFOLD,
        sometimes(output=st.sampled_from(["sum", "weighted"])),
    )
    at = sometimes(at=st.sampled_from(["block", "sublayer"]))
    return st.builds(lambda found, more: found | more, split | copies | gated | gated, at)


DYNAMIC = sometimes(
    norm=NORM, activation=st.sampled_from(ACTIVATIONS), scale=st.sampled_from([0.01, 1.0])
)
HYPER = st.builds(
    lambda more: {"kind": "hyper", **more}, sometimes(dynamic=st.booleans() | DYNAMIC)
)
SINKHORN = sometimes(
    iterations=st.sampled_from([1, 2, 5]),
    start=st.sampled_from(["softmax", "exp"]),
    eps=st.sampled_from([1e-6, 1e-2]),
    transpose=st.booleans(),
    diagonal=st.sampled_from([0.0, 1.5]),
)
MANIFOLD = st.builds(
    # eps outside of the root is for the norm that holds by itself
    lambda more: {"kind": "manifold", **({**more, "norm": "rms_norm"} if "root" in more else more)},
    sometimes(
        norm=NORM,
        init=INITIAL,
        scale=st.sampled_from([0.01, 1.0]),
        eps=st.sampled_from([1e-6, 1e-2]),
        write=st.sampled_from([1.0, 2.0]),
        root=st.sampled_from(["inside", "outside"]),
        sinkhorn=st.just(True) | SINKHORN | SINKHORN,
    ),
)
