"""What stands between a projection and attention: heads, their norm, rotary positions."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.match import Fusion, Match, source


def rotate_heads(
    x: Any,
    cos: Any = None,
    sin: Any = None,
    gain: Any = None,
    bias: Any = None,
    *,
    heads: int,
    norm: str,
    eps: float,
    pairs: str,
) -> Any:
    y = f.split_heads(x, heads=heads)
    if norm:
        y = getattr(f, norm)(y, gain, bias, eps=eps)
    return y if cos is None else f.rotary(y, cos, sin, pairs=pairs)


OP = Op(
    signature="x[B,T,H*E], cos?[P,T,R], sin?[P,T,R], gain?[E], bias?[E] -> y[B,H,T,E]",
    reference=rotate_heads,
    doc="Splits heads, normalises each (if `norm`), turns its channels (if cos is given).",
    attrs={
        "heads": Attr("number of heads", letter="H"),
        "norm": Attr("layer_norm, rms_norm or empty", ""),
        "eps": Attr("of the norm", 1e-5),
        "pairs": Attr("half or adjacent; see rotary", "half"),
    },
    params={"gain": ONES, "bias": ZEROS},
    saves=("x",),
    composed=True,
    samples=[
        Sample(
            shapes={"x": (2, 3, 12), "cos": (1, 3, 2), "sin": (1, 3, 2), "gain": (6,)},
            attrs={"heads": 2, "norm": "rms_norm", "eps": 1e-5, "pairs": "half"},
        ),
        Sample(
            shapes={"x": (2, 3, 12), "cos": (2, 3, 3), "sin": (2, 3, 3)},
            attrs={"heads": 2, "norm": "", "eps": 1e-5, "pairs": "adjacent"},
        ),
        Sample(
            shapes={"x": (2, 3, 12), "gain": (6,), "bias": (6,)},
            attrs={"heads": 2, "norm": "layer_norm", "eps": 1e-5, "pairs": "half"},
        ),
    ],
    rejects=[
        Reject(
            shapes={"x": (2, 3, 12), "gain": (5,)},
            attrs={"heads": 2, "norm": "rms_norm", "eps": 1e-5, "pairs": "half"},
            error="E is 6 in x but 5 in gain",
        )
    ],
    cite="arXiv:2104.09864",
)


def match(graph: LayerGraph, root: Record) -> Match | None:
    """split_heads, then a norm, rotary or both; the root is the last of them."""
    if root.is_norm and {graph.record(path).op for path, _ in graph.readers(Value(root.path))} == {
        "rotary"
    }:
        return None  # the rotary is the last
    chain = [root]
    attrs: dict[str, Any] = {"norm": "", "eps": 1e-5, "pairs": "half"}
    arguments: dict[str, Value] = {}
    params: dict[str, str] = {}
    if root.op == "rotary":
        arguments |= {name: graph.sources(root.path)[name] for name in ("cos", "sin")}
        attrs["pairs"] = root.attrs["pairs"]
        below = source(graph, root.path, "x")
        assert below is not None
        chain.append(below)
    if chain[-1].is_norm:
        norm = chain[-1]
        attrs |= {"norm": norm.op, "eps": norm.attrs["eps"]}
        names = {"weight": "gain", "bias": "bias"}
        params = {names[role]: path for role, path in norm.params.items()}
        below = source(graph, norm.path, "x")
        if below is None or len(graph.sources(norm.path)) > 1:
            return None
        chain.append(below)
    if chain[-1].op != "split_heads" or len(chain) == 1:
        return None
    last = chain[-1]
    attrs = {"heads": last.attrs["heads"], **attrs}
    return Match(
        at=root.path,
        record=Record(
            path=root.path, op="rotate_heads", attrs=attrs, params=params, span=root.span
        ),
        arguments={"x": graph.sources(last.path)["x"], **arguments},
        outputs=(Value(root.path),),
        nodes=frozenset(record.path for record in chain),
    )


FUSION = Fusion(
    op="rotate_heads",
    roots=("rotary",),
    norms=True,
    match=match,
    fires_on=("pythia-test", "mixtral-test"),
)
