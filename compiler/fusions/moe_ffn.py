"""A feed-forward part with experts: only those that a token goes to are asked."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ONES, ZEROS
from multiway.compiler.graph.layer_graph import LayerGraph, Record
from multiway.compiler.graph.op import Attr, Op, Reject, Sample
from multiway.compiler.graph.registry import call as f
from multiway.compiler.matching.experts import Region, experts_of, fused_experts
from multiway.compiler.matching.match import Fusion, Match


def moe_ffn(
    x: Any,
    gates: Any,
    up: Any,
    down: Any,
    gate: Any = None,
    up_bias: Any = None,
    gate_bias: Any = None,
    down_bias: Any = None,
    gain: Any = None,
    shift: Any = None,
    *,
    count: int,
    kind: str,
    norm: str,
    eps: float,
    most: int,
) -> Any:
    xs = f.spread(x, count=count)
    h = f.expert_linear(xs, up, up_bias)
    if gate is None:
        h = f.activation(h, kind=kind)
    else:
        h = f.multiply(f.activation(f.expert_linear(xs, gate, gate_bias), kind=kind), h)
    if norm:
        h = getattr(f, norm)(h, eps=eps)
        h = h if gain is None else f.expert_affine(h, gain, shift)
    return f.mix_experts(f.expert_linear(h, down, down_bias), gates, most=most)


_SHAPES = {"x": (2, 3, 4), "gates": (2, 3, 2), "up": (2, 5, 4), "down": (2, 4, 5)}
_BIASES = {"up_bias": (2, 5), "down_bias": (2, 4)}


def _attrs(**more: Any) -> dict[str, Any]:
    return {"count": 2, "kind": "gelu", "norm": "", "eps": 1e-5, "most": 2} | more


OP = Op(
    signature=(
        "x[*,D], gates[*,X], up[X,F,D], down[X,G,F], gate?[X,F,D], up_bias?[X,F], "
        "gate_bias?[X,F], down_bias?[X,G], gain?[X,F], shift?[X,F] -> y[*,G]"
    ),
    reference=moe_ffn,
    doc=(
        "The sum over experts of gate times down(h), h the activation of up(x), or that of gate(x) "
        "times up(x), normalised if `norm` is given."
    ),
    attrs={
        "count": Attr("number of experts", letter="X"),
        "kind": Attr("of the activation", "gelu"),
        "norm": Attr("layer_norm, rms_norm or empty", ""),
        "eps": Attr("of the norm", 1e-5),
        "most": Attr("gates of a token that are not 0, at most; 0: any number", 0),
    },
    params={
        **dict.fromkeys(("up", "down", "gate"), NORMAL),
        **dict.fromkeys(("up_bias", "gate_bias", "down_bias", "shift"), ZEROS),
        "gain": ONES,
    },
    tokenwise=("x", "gates"),
    saves=("x", "gates", "inner"),
    composed=True,
    samples=[
        Sample(shapes=_SHAPES | _BIASES, attrs=_attrs()),
        Sample(
            shapes=_SHAPES | _BIASES | {"gate": (2, 5, 4), "gate_bias": (2, 5)},
            attrs=_attrs(kind="silu", most=0),
        ),
        Sample(
            shapes=_SHAPES | {"gain": (2, 5), "shift": (2, 5)},
            attrs=_attrs(norm="layer_norm", most=1),
        ),
        Sample(
            shapes=_SHAPES | {"gain": (2, 5)}, attrs=_attrs(norm="rms_norm", kind="relu_squared")
        ),
    ],
    rejects=[
        Reject(
            shapes=_SHAPES | {"down": (2, 4, 6)},
            attrs=_attrs(),
            error="F is 5 in up but 6 in down",
        )
    ],
    cite="arXiv:1701.06538",
)


def match(graph: LayerGraph, mixed: Record) -> Match | None:
    """A mixture of feed-forward parts that all read one x."""
    region = Region(graph, mixed)
    down = region.of(mixed, "xs", "expert_linear")
    if down is None:
        return None
    attrs: dict[str, Any] = {"norm": "", "eps": 1e-5}
    inner = down
    if (affine := region.of(down, "x", "expert_affine")) is not None:
        region.takes(affine, weight="gain", bias="shift")
        inner = affine
    if (norm := region.norm_of(inner)) is not None and not norm.params:
        attrs |= {"norm": norm.op, "eps": norm.attrs["eps"]}
        inner = norm
    elif affine is not None:
        return None
    gated = region.of(inner, "x", "multiply")
    activation = region.of(gated or inner, "a" if gated else "x", "activation")
    up = region.of(gated, "b", "expert_linear") if gated else None
    gate = region.of(activation, "x", "expert_linear") if activation else None
    if activation is None or gate is None or (gated and up is None):
        return None
    for linear, role in ((up, "up"), (gate, "gate")) if up else ((gate, "up"),):
        assert linear is not None
        region.takes(linear, weight=role, bias=f"{role}_bias")
        if region.spread(linear) is None:
            return None
    region.takes(down, weight="down", bias="down_bias")
    attrs["kind"] = activation.attrs["kind"]
    return fused_experts("moe_ffn", region, experts_of(region) | attrs)


FUSION = Fusion(
    op="moe_ffn",
    roots=("mix_experts",),
    match=match,
    fires_on=("pythia-test/top_k", "mixtral-test"),
)
