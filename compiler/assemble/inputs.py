"""The inputs of a program, and the sequence that their embeddings are joined to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multiway.compiler.assemble.hiddens import Hiddens, Segment, padding_of
from multiway.compiler.assemble.parts import embedding
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.layer_graph import Value
from multiway.compiler.graph.types import Tensor, sym
from multiway.specs.language.inputs import Form
from multiway.specs.spec import Spec


def token_type(spec: Spec, name: str, *, batch: str = "B") -> Tensor:
    """The type of an input as a program takes it."""
    each, b = spec.inputs[name], sym(batch)
    if each.form() == Form.IMAGE:
        assert each.size is not None
        return Tensor((b, each.channels, each.size, each.size))
    if each.form() == Form.FEATURES:
        assert each.features is not None
        return Tensor((b, length(spec, name), each.features))
    return Tensor((b, length(spec, name)), "int")


def length(spec: Spec, name: str) -> Any:
    """The named length of an input: T for the first text (or vectors), T_name for others."""
    forms = {each.form(): n for n, each in reversed(list(spec.inputs.items()))}
    first = forms.get(Form.TOKENS) or forms.get(Form.FEATURES)
    return sym("T" if name == first else f"T_{name}")


def inputs_for(program: Program, names: Sequence[str], *, padding: bool) -> dict[str, Value]:
    """Program inputs for the named inputs of the spec, with `name_padding` where declared."""
    spec, found = program.spec, {}
    for name in names:
        (found[name],) = program.input(name, token_type(spec, name), part=spec.inputs[name])
    for name in names:
        if padding and spec.inputs[name].padding == "right":
            shape, flags = token_type(spec, name).shape[:2], f"{name}_padding"
            (found[flags],) = program.input(flags, Tensor(shape, "bool"))
    return found


def masks_for(program: Program, names: Sequence[str]) -> dict[str, Value]:
    """`name_masked` [B, patches] for every image whose modality has a mask token."""
    spec, found = program.spec, {}
    for name in names:
        embed = spec.embed.get(spec.inputs[name].modality)
        if embed is not None and embed.mask_token:
            patches = (spec.tokens_of(name) or 0) - (1 if embed.cls else 0)
            kind = Tensor((sym("B"), patches), "bool")
            (found[f"{name}_masked"],) = program.input(f"{name}_masked", kind)
    return found


def sequence(
    program: Program, names: Sequence[str], values: Mapping[str, Value], *, mask: str | None
) -> Hiddens:
    """Embeds inputs and joins them. mask: `prefix`, or None for that of the spec."""
    parts = [embedding.build(program, name, values) for name in names]
    segments = [
        _segment(program.spec, name, x, values) for name, x in zip(names, parts, strict=True)
    ]
    sizes, hidden = None, parts[0]
    if len(parts) > 1:
        sizes = program.node("embed.sizes", "segment_lengths", {"parts": parts})
        hidden = program.node("embed.join", "concat", {"parts": parts})
    program.name("hidden.0", hidden)
    seq = Hiddens(hidden=hidden, segments=tuple(segments), sizes=sizes)
    if mask != "prefix":
        seq.mask = _padding_mask(program, seq)
        return seq
    seq.causal = False
    if sizes is not None:
        seq.mask = program.node("embed.mask", "prefix_mask", {"x": hidden, "sizes": sizes})
    return seq


def _segment(spec: Spec, name: str, hidden: Value, values: Mapping[str, Value]) -> Segment:
    each = spec.inputs[name]
    return Segment(
        name=name,
        modality=each.modality,
        hidden=hidden,
        tokens=values[name] if each.form() == Form.TOKENS else None,
        padding=values.get(f"{name}_padding"),
    )


def _padding_mask(program: Program, seq: Hiddens) -> Value | None:
    """The mask of padded keys, where some query could see one."""
    padded = [segment.padding for segment in seq.segments]
    causal = all(block.attention.mask == "causal" for block in program.spec.blocks)
    # Behind the last segment's padding stands nothing, so causal blocks need no mask for it.
    if not any(padded[:-1] if causal else padded):
        return None
    padding = padding_of(program, seq)
    assert padding is not None
    return program.node("embed.mask", "padding_mask", {"padding": padding})
