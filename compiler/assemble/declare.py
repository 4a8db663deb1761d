"""Which parameters a spec declares: path, shape and initial values, without building a graph.

A program may read only some of them; a model always holds all, so that saved files do not depend
on what was run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from multiway.compiler.assemble.parameters import Declared, join, start_of, ways_of
from multiway.compiler.assemble.wiring_parameters import declare_before, declare_behind
from multiway.compiler.graph import Param
from multiway.specs.errors import MultiwayError
from multiway.specs.language import Block
from multiway.specs.parts import PlainNorm
from multiway.specs.readings import Site, sites, split_norms
from multiway.specs.routing import Chosen, chosen
from multiway.specs.spec import Spec

MAX_PARAMETERS = 4_000_000_000_000


def declare(spec: Spec) -> Mapping[str, Param]:
    """Every parameter of the spec as its head has it, in a fixed order. Raises MultiwayError."""
    declared = Declared(spec)
    _embed(spec, declared)
    for site in sites(spec):
        declare_before(declared, site)
        _sublayer(spec, declared, site)
        declare_behind(declared, site)
    declared.norm("output.norm", spec.output.norm, width=spec.width)
    spec.head.declare(declared, f"heads.{spec.head_name}")  # type: ignore[attr-defined]
    total = sum(param.size for param in declared.values())
    if total > MAX_PARAMETERS:
        raise MultiwayError.one(
            "absurd-size",
            f"this model would have {total:,} parameters",
            span=spec.tree["dims"].span,
            expected=f"at most {MAX_PARAMETERS:,}",
        )
    return declared


def _embed(spec: Spec, declared: Declared) -> None:
    for modality in spec.modalities:
        for name in spec.inputs_of(modality)[:1]:  # inputs of one modality share their embedding
            _embed_input(spec, declared, modality, name)


def _embed_input(spec: Spec, declared: Declared, modality: str, name: str) -> None:
    each, embed = spec.inputs[name], spec.embed.get(modality)
    path, width = f"embed.{modality}", spec.width
    if each.form() == "tokens":
        assert each.vocab is not None
        declared.add(f"{path}.weight", (each.vocab, width), start_of("embedding", "weight"), each)
    elif each.form() == "features":
        assert each.features is not None
        bias = embed is None or embed.bias
        declared.linear(f"{path}.project", out=width, width=each.features, bias=bias, part=each)
    else:
        assert embed is not None and embed.patch is not None
        side = embed.patch.size
        shape = (width, each.channels, side, side)
        declared.add(f"{path}.patch.weight", shape, start_of("patch_embed", "weight"), embed)
        if embed.patch.bias:
            declared.add(f"{path}.patch.bias", (width,), start_of("patch_embed", "bias"), embed)
        if embed.mask_token:
            declared.add(
                f"{path}.mask_token", (1, 1, width), start_of("mask_tokens", "token"), embed
            )
        if embed.cls:
            declared.add(f"{path}.cls", (1, 1, width), start_of("prepend_token", "token"), embed)
    if embed is not None and embed.position is not None:
        rows = spec.learned_rows(modality)
        declared.add(
            f"{path}.position.weight",
            (rows, width),
            start_of("add_position", "weight"),
            embed.position,
        )


def attention_widths(spec: Spec, block: Block) -> tuple[int, int]:
    """(width of all query heads, width of all key heads)."""
    attention = block.attention
    head = attention.head_width or spec.width // attention.heads
    return head * attention.heads, head * (attention.kv_heads or attention.heads)


def _sublayer(spec: Spec, declared: Declared, site: Site) -> None:
    if site.part == "output":
        return
    block = spec.blocks[site.layer]
    if site.part != "ffn":
        _attention(spec, declared, site, block)
    if site.part != "attention":
        _ffn(spec, declared, site.layer, block)


def _attention(spec: Spec, declared: Declared, site: Site, block: Block) -> None:
    path, width, attention = f"blocks.{site.layer}.attention", spec.width, block.attention
    inner, kv = attention_widths(spec, block)
    norm, places = attention.norm or block.norm, spec.wiring.norms
    split = "qkv" if split_norms(spec, site) else ("",)
    for stream in split if "input" in places else ():
        declared.norm(join(path, "norm", stream), norm, width=width, default=block.norm)
    ways, experts = ways_of(spec, attention.experts), chosen(attention.experts)
    for way in ways:
        declared.router(join(path, "router", way), experts, width=width)
    for name, out in (("query", inner), ("key", kv), ("value", kv)):
        for way in ways:
            declared.linear(
                join(path, name, way),
                out=out,
                width=width,
                bias=attention.bias,
                part=attention,
                experts=experts,
            )
    if (qk := attention.qk_norm) is not None:
        head = inner // attention.heads
        as_norm = PlainNorm(kind=qk.kind, eps=qk.eps, node=qk.node)
        for name, total in (("query_norm", inner), ("key_norm", kv)):
            size = head if qk.over == "head" else total
            declared.norm(f"{path}.{name}", as_norm, width=size, default=block.norm)
    declared.norm(
        f"{path}.sub_norm",
        attention.sub_norm,
        width=inner,
        ways=ways,
        default=block.norm,
        experts=experts,
    )
    for way in ways:
        declared.linear(
            join(path, "output", way),
            out=width,
            width=inner,
            bias=attention.bias,
            part=attention,
            experts=experts,
        )
    if "output" in places:
        declared.norm(f"{path}.output_norm", norm, width=width, default=block.norm)


def _ffn(spec: Spec, declared: Declared, layer: int, block: Block) -> None:
    path, width, ffn = f"blocks.{layer}.ffn", spec.width, block.ffn
    norm, places = ffn.norm or block.norm, spec.wiring.norms
    if "input" in places:
        declared.norm(f"{path}.norm", norm, width=width, default=block.norm)
    ways, experts = ways_of(spec, ffn.experts), chosen(ffn.experts)
    for way in ways:
        declared.router(join(path, "router", way), experts, width=width)
    _feed_forward(declared, path, ways, block, ffn.hidden, experts)
    if experts is not None and (shared := experts.shared) is not None:
        _feed_forward(declared, f"{path}.shared", ways, block, shared.hidden, None)
        for way in ways if shared.gate else ():
            at = join(path, "shared", "score", way)
            declared.linear(at, out=1, width=width, bias=False, part=shared)
    if "output" in places:
        declared.norm(f"{path}.output_norm", norm, width=width, default=block.norm)


def _feed_forward(
    declared: Declared,
    path: str,
    ways: tuple[str, ...],
    block: Block,
    hidden: int,
    experts: Chosen | None,
) -> None:
    ffn, width = block.ffn, declared.spec.width
    linear = functools.partial(declared.linear, bias=ffn.bias, part=ffn, experts=experts)
    for name in ("up", "gate") if ffn.gate else ("up",):
        for way in ways:
            linear(join(path, name, way), out=hidden, width=width)
    declared.norm(
        f"{path}.sub_norm",
        ffn.sub_norm,
        width=hidden,
        ways=ways,
        default=block.norm,
        experts=experts,
    )
    for way in ways:
        linear(join(path, "down", way), out=width, width=hidden)
