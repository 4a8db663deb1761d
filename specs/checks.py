"""What a well-formed spec can still get wrong: sizes that do not fit, names of nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multiway.specs.errors import Report, nearest, one_of
from multiway.specs.language import (
    Attention,
    Block,
    Experts,
    Input,
    Learned,
    Norm,
    PlainNorm,
    Rotary,
)

if TYPE_CHECKING:
    from multiway.specs.spec import Spec


def check(spec: Spec, report: Report) -> None:
    """Adds every problem of the spec, as its head has it, to the report."""
    _check_embed(spec, report)
    if not report.problems:
        for name, each in spec.inputs.items():
            _check_input(spec, name, each, report)
    for block in dict.fromkeys(spec.blocks):
        _check_block(spec, block, report)
    _check_norm(spec, spec.output.norm, report)
    spec.head.check_spec(spec, report)


def _check_embed(spec: Spec, report: Report) -> None:
    for modality, embed in spec.embed.items():
        if modality not in spec.modalities:
            report.add(
                "unknown-modality",
                f"no input has modality {modality!r}",
                span=embed.node.span,
                expected=one_of(spec.modalities),
                nearest=nearest(modality, spec.modalities),
            )
    for name, each in spec.inputs.items():
        given = spec.embed.get(each.modality)
        if each.form() == "image" and (given is None or given.patch is None):
            report.add(
                "missing-key",
                f"the image {name!r} has no patches",
                span=each.node.span,
                expected=f"embed: {{{each.modality}: {{patch: {{size: 16}}}}}}",
            )
        if each.form() != "image" and given is not None and (given.patch or given.cls):
            report.add(
                "input-form",
                f"{each.modality!r} has patches or cls, but {name!r} is not an image",
                span=given.node.span,
            )


def _check_input(spec: Spec, name: str, each: Input, report: Report) -> None:
    embed = spec.embed.get(each.modality)
    if each.form() == "image":
        assert each.size is not None and embed is not None and embed.patch is not None
        if each.size % embed.patch.size:
            report.add(
                "indivisible",
                f"image size {each.size} is not a multiple of patch size {embed.patch.size}",
                span=each.span("size"),
                expected="patches that fill the image",
                notes=(("patch", str(embed.patch.span("size"))),),
            )
            return
    position = embed.position if embed else None
    if not isinstance(position, Learned):
        return
    tokens = spec.tokens_of(name)
    if position.rows is None and tokens is None:
        report.add(
            "missing-key",
            f"the position table of {name!r} has no size",
            span=position.node.span,
            expected=f"rows here, or context under inputs.{name}",
        )
    elif (
        position.rows is not None
        and tokens is not None
        and tokens > position.rows - position.offset
    ):
        report.add(
            "too-few-positions",
            f"{name!r} has up to {tokens} tokens, but positions for {position.rows - position.offset}",
            span=position.span("rows"),
            expected=f"at least {tokens + position.offset} rows (offset {position.offset} included)",
            notes=(("tokens", str(each.span("context" if each.context else "size"))),),
        )
    for special in ("start", "padding", "end", "mask"):
        value = getattr(each.special, special) if each.special else None
        if value is not None and each.vocab is not None and value >= each.vocab:
            assert each.special is not None
            report.add(
                "out-of-vocabulary",
                f"the {special} token {value} is not in a vocabulary of {each.vocab}",
                span=each.special.span(special),
            )


def _check_block(spec: Spec, block: Block, report: Report) -> None:
    attention = block.attention
    _check_heads(spec, attention, report)
    for norm in (
        block.norm,
        attention.norm,
        attention.sub_norm,
        block.ffn.norm,
        block.ffn.sub_norm,
    ):
        _check_norm(spec, norm, report)
    for experts in (attention.experts, block.ffn.experts):
        _check_experts(spec, experts, report)
    if block.norm.kind is None or block.norm.eps is None:
        missing = "kind" if block.norm.kind is None else "eps"
        report.add(
            "missing-key",
            f"block.norm needs {missing!r}, because other norms inherit it",
            span=block.norm.node.span,
            expected="norm: {kind: rms_norm, eps: 1e-6}",
        )


def _check_heads(spec: Spec, attention: Attention, report: Report) -> None:
    heads, width = attention.heads, spec.width
    if attention.head_width is None and width % heads:
        report.add(
            "indivisible",
            f"width {width} is not a multiple of {heads} heads",
            span=attention.span("heads"),
            expected="heads that divide the width, or head_width",
            notes=(("width", str(spec.tree["dims"]["width"].span)),),
        )
        return
    if attention.kv_heads and heads % attention.kv_heads:
        report.add(
            "indivisible",
            f"{heads} heads cannot share {attention.kv_heads} key and value heads",
            span=attention.span("kv_heads"),
            expected="a divisor of heads",
        )
    if isinstance(attention.position, Rotary):
        _check_rotary(attention.position, attention.head_width or width // heads, report)


def _check_rotary(rotary: Rotary, head_width: int, report: Report) -> None:
    channels = int(head_width * rotary.fraction)
    if not 0 < rotary.fraction <= 1 or channels < 2 or channels % 2:
        report.add(
            "rotary-channels",
            f"fraction {rotary.fraction:g} of head width {head_width} turns {channels} channels",
            span=rotary.span("fraction"),
            expected="an even number of channels, at least 2",
        )
    if rotary.base <= 1:
        report.add(
            "too-small", f"base {rotary.base:g}", span=rotary.span("base"), expected="more than 1"
        )


def _check_norm(spec: Spec, norm: PlainNorm | None, report: Report) -> None:
    if norm is None:
        return
    if norm.eps is not None and not 0 <= norm.eps < 1:
        report.add(
            "too-small" if norm.eps < 0 else "too-large-value",
            f"eps {norm.eps:g}",
            span=norm.span("eps"),
            expected="a small positive number, e.g. 1e-5",
        )
    if isinstance(norm, Norm):
        _check_experts(spec, norm.experts, report)


def _check_experts(spec: Spec, experts: Experts | None, report: Report) -> None:
    if experts is None or experts.fused is None:
        return
    for modality in experts.fused.when:
        if modality not in spec.modalities:
            report.add(
                "unknown-modality",
                f"no input has modality {modality!r}",
                span=experts.fused.span("when"),
                expected=one_of(spec.modalities),
                nearest=nearest(modality, spec.modalities),
            )
    if len(set(experts.fused.when)) < 2:
        report.add(
            "fused-way",
            "a fused way serves several modalities together",
            span=experts.fused.span("when"),
            expected="when: [" + ", ".join(spec.modalities[:2]) + "]",
        )
