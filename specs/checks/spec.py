"""What a well-formed spec can still get wrong: sizes that do not fit, names of nothing."""

from __future__ import annotations

import builtins
import dataclasses
import keyword
from typing import TYPE_CHECKING, Any

from multiway.specs.checks.routing import check_experts, check_norm
from multiway.specs.checks.wiring import check_wiring
from multiway.specs.errors import Report, nearest, one_of
from multiway.specs.language.block import Attention, Block, Rotary
from multiway.specs.language.fields import parse_expression
from multiway.specs.language.inputs import Embed, Form, Input, Learned
from multiway.specs.language.parts import Norm, PlainNorm
from multiway.specs.language.wiring import Manifold

if TYPE_CHECKING:
    from multiway.specs.spec import Spec
    from multiway.specs.text.source import Node

MAX_INPUTS = 16  # a head may have a program for every subset of them

# What programs call their own inputs; `text_padding` is the padding mask of `text`.
_PROGRAM_INPUTS = ("labels", "cache", "positions", "program", "self", "getattr")
_ENDINGS = ("_padding", "_masked", "_positions")
# Where the parameters of a model stand. A pass over one input has a module of the input's name
# beside them, as the towers of `contrastive` do.
CONTAINERS = ("embed", "blocks", "history", "output", "heads")


def check(spec: Spec, report: Report) -> None:
    """Adds every problem of the spec, as its head has it, to the report."""
    before = len(report.problems)
    if len(spec.inputs) > MAX_INPUTS:
        message, expected = f"these are {len(spec.inputs)} inputs", f"at most {MAX_INPUTS}"
        report.add("absurd-size", message, span=spec.tree["inputs"].span, expected=expected)
    for name in spec.inputs:
        _check_input_name(spec, name, report)
    _check_modalities(spec, report)
    _check_embed(spec, report)
    if len(report.problems) > before:
        return  # what follows needs inputs that can be embedded
    for name, each in spec.inputs.items():
        _check_special(each, report)
        _check_input(spec, name, each, report)
    _check_blocks(spec, report)
    _check_norm(spec, spec.output.norm, report)
    for norm in _wiring_norms(spec):
        _check_norm(spec, norm, report)
    if len(report.problems) == before:
        check_wiring(spec, report)
    spec.head.check_spec(spec, report)


def _wiring_norms(spec: Spec) -> list[PlainNorm | None]:
    found: list[PlainNorm | None] = []
    for _, mix in spec.wiring.mixes():
        found += [mix.source_norm, mix.sum_norm, mix.generator.norm if mix.generator else None]
    lanes = spec.wiring.lanes
    weights = lanes.weights if lanes is not None else None
    if isinstance(weights, Manifold):
        found.append(weights.norm)
    elif weights is not None and weights.dynamic is not None:
        found.append(weights.dynamic.norm)
    return found


# Inputs


def _check_input_name(spec: Spec, name: str, report: Report) -> None:
    """Inputs become arguments of programs, beside others and in Python code."""
    span = spec.tree["inputs"].key_span(name)
    if name in CONTAINERS:
        report.add(
            "bad-name",
            f"an input cannot be called {name!r}, under which a model has parameters",
            span=span,
            expected=f"a name other than {', '.join(CONTAINERS)}",
        )
    python = keyword.iskeyword(name) or hasattr(builtins, name)
    if name in _PROGRAM_INPUTS or name.endswith(_ENDINGS) or python:
        report.add(
            "bad-name",
            f"an input cannot be called {name!r}, which means something else in programs",
            span=span,
            expected=f"a name other than {', '.join(_PROGRAM_INPUTS)}, no keyword or builtin "
            f"function of Python, and not one that ends in {', '.join(_ENDINGS)}",
        )


def _check_modalities(spec: Spec, report: Report) -> None:
    """Inputs of one modality share their embedding, so they must look alike."""
    for modality in spec.modalities:
        first, *others = (spec.inputs[name] for name in spec.inputs_of(modality))
        for other in others:
            for key in ("vocab", "features", "channels"):
                mine, its = getattr(other, key), getattr(first, key)
                if mine != its:
                    report.add(
                        "unlike-inputs",
                        f"inputs of modality {modality!r} share their embedding, "
                        f"but {key} is {_shown(mine)} here and {_shown(its)} there",
                        span=other.span(key),
                        notes=(("there", f"at {first.span(key)}"),),
                    )


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def _check_embed(spec: Spec, report: Report) -> None:
    for modality, embed in spec.embed.items():
        if modality not in spec.modalities:
            report.add(
                "unknown-modality",
                f"no input has modality {modality!r}",
                span=spec.tree["embed"].key_span(modality),
                expected=one_of(spec.modalities),
                nearest=nearest(modality, spec.modalities),
            )
            continue
        name = spec.inputs_of(modality)[0]
        _check_embed_form(modality, embed, name, spec.inputs[name].form(), report)
    for name, each in spec.inputs.items():
        embedded = spec.embed.get(each.modality)
        if each.form() == Form.IMAGE and (embedded is None or embedded.patch is None):
            report.add(
                "missing-key",
                f"the image {name!r} has no patches",
                span=spec.tree["inputs"].key_span(name),
                expected=f"embed: {{{each.modality}: {{patch: {{size: 16}}}}}}",
            )


def _check_embed_form(modality: str, embed: Embed, name: str, form: Form, report: Report) -> None:
    image = dict.fromkeys(("patch", "cls", "mask_token"), Form.IMAGE)
    belongs = {**image, "bias": Form.FEATURES}
    words = {Form.IMAGE: "an image", Form.FEATURES: "vectors", Form.TOKENS: "token ids"}
    for key, wanted in belongs.items():
        given = embed.node.get(key)
        if given is not None and given.value is not False and form != wanted:
            report.add(
                "input-form",
                f"{key} is for {words[wanted]}; the input {name!r} of modality {modality!r} "
                f"holds {words[form]}",
                span=embed.node.key_span(key),
            )


def _check_special(each: Input, report: Report) -> None:
    for special in ("start", "padding", "end", "mask"):
        value = getattr(each.special, special) if each.special else None
        if value is not None and each.vocab is not None and value >= each.vocab:
            assert each.special is not None
            report.add(
                "out-of-vocabulary",
                f"the {special} token {value} is not in a vocabulary of {each.vocab}",
                span=each.special.span(special),
                expected=f"0 to {each.vocab - 1}",
                notes=(("vocabulary", f"at {each.span('vocab')}"),),
            )


def _check_input(spec: Spec, name: str, each: Input, report: Report) -> None:
    embed = spec.embed.get(each.modality)
    if each.form() == Form.IMAGE:
        assert each.size is not None and embed is not None and embed.patch is not None
        if each.size % embed.patch.size:
            report.add(
                "indivisible",
                f"image size {each.size} is not a multiple of patch size {embed.patch.size}",
                span=each.span("size"),
                expected="patches that fill the image",
                notes=(
                    ("patch", f"at {embed.patch.span('size')}"),
                    *_dims_behind(spec, each.node.get("size"), embed.patch.node.get("size")),
                ),
            )
            return
    if embed is not None and isinstance(embed.position, Learned):
        _check_positions(spec, name, each, embed.position, report)


def _check_positions(spec: Spec, name: str, each: Input, position: Learned, report: Report) -> None:
    tokens = spec.tokens_of(name)
    if position.rows is None and tokens is None:
        report.add(
            "missing-key",
            f"the position table of {name!r} has no size",
            span=position.node.span,
            expected=f"rows here, or context under inputs.{name}",
        )
    if position.rows is None:
        return
    have, need = position.rows - position.offset, max(tokens or 0, 1)
    if have >= need:
        return
    offset = f", the offset of {position.offset} included" if position.offset else ""
    notes = _dims_behind(spec, position.node.get("rows"))
    if tokens is None or tokens < 1:
        message = f"{position.rows} rows behind an offset of {position.offset} are no positions"
    else:
        message = f"{name!r} has up to {tokens} tokens, but {max(have, 0)} positions"
        source = each.node.get("context") or each.node.get("size")
        assert source is not None
        notes = (("tokens", f"at {source.span}"), *_dims_behind(spec, source), *notes)
    report.add(
        "too-few-positions",
        message,
        span=position.span("rows"),
        expected=f"at least {need + position.offset} rows{offset}",
        notes=notes,
    )


def _dims_behind(spec: Spec, *nodes: Node | None) -> tuple[tuple[str, str], ...]:
    """A note for each dim that sizes were made from: its value, and where it was bound."""
    dims = spec.tree["dims"]
    names: list[str] = []
    for node in nodes:
        names += sorted(parse_expression(node).names()) if node is not None else []
    return tuple(
        (name, f"{spec.dims[name]:g} at {dims[name].span}")
        for name in dict.fromkeys(names)
        if name in spec.dims
    )


# Blocks


def _check_blocks(spec: Spec, report: Report) -> None:
    """Checks every different block; of blocks that are wrong in the same place only the first."""
    first = {block: layer for layer, block in reversed(list(enumerate(spec.blocks)))}
    said = set()
    for block, layer in sorted(first.items(), key=lambda item: item[1]):
        found = Report()
        _check_block(spec, block, found)
        for problem in found.problems:
            if (problem.code, problem.span) not in said:
                said.add((problem.code, problem.span))
                note = (("layer", str(layer)),) if len(first) > 1 else ()
                report.keep(dataclasses.replace(problem, notes=(*problem.notes, *note)))


def _check_block(spec: Spec, block: Block, report: Report) -> None:
    attention = block.attention
    _check_heads(spec, attention, report)
    norms = (block.norm, attention.norm, attention.sub_norm, block.ffn.norm, block.ffn.sub_norm)
    for norm in norms:
        _check_norm(spec, norm, report)
    if attention.qk_norm is not None:
        _check_eps(attention.qk_norm, report)
    check_experts(spec, attention.experts, report, shared="attention")
    check_experts(spec, block.ffn.experts, report)
    for missing in ("kind", "eps"):
        if getattr(block.norm, missing) is None:
            report.add(
                "missing-key",
                f"block.norm needs {missing!r}, because other norms inherit it",
                span=block.norm.node.span,
                expected="norm: {kind: rms_norm, eps: 1e-6}, for instance",
            )


def _check_heads(spec: Spec, attention: Attention, report: Report) -> None:
    heads, width = attention.heads, spec.width
    if attention.head_width is None and width % heads:
        report.add(
            "indivisible",
            f"width {width} is not a multiple of {heads} heads",
            span=attention.span("heads"),
            expected="heads that divide the width, or head_width",
            notes=(
                ("width", f"at {spec.tree['dims']['width'].span}"),
                *_dims_behind(spec, attention.node["heads"]),
            ),
        )
        return
    if attention.kv_heads and heads % attention.kv_heads:
        report.add(
            "indivisible",
            f"{heads} heads cannot share {attention.kv_heads} key and value heads",
            span=attention.span("kv_heads"),
            expected="a divisor of heads",
            notes=(
                ("heads", f"at {attention.span('heads')}"),
                *_dims_behind(spec, attention.node["heads"], attention.node["kv_heads"]),
            ),
        )
    if isinstance(attention.position, Rotary):
        _check_rotary(attention.position, attention.head_width or width // heads, report)


def _check_rotary(rotary: Rotary, head_width: int, report: Report) -> None:
    if not 0 < rotary.fraction <= 1:
        report.add(
            "out-of-range",
            f"fraction is {rotary.fraction:g}",
            span=rotary.span("fraction"),
            expected="more than 0, at most 1",
        )
    elif (channels := int(head_width * rotary.fraction)) < 2 or channels % 2:
        part = "" if rotary.fraction >= 1 else f"{channels} of "
        report.add(
            "rotary-channels",
            f"rotary cannot turn {part}the {head_width} channels of a head",
            span=rotary.span("fraction"),
            expected="an even number of channels, at least 2",
        )
    if rotary.base <= 1:
        report.add(
            "out-of-range",
            f"base is {rotary.base:g}",
            span=rotary.span("base"),
            expected="more than 1, 10000 for instance",
        )


def _check_norm(spec: Spec, norm: PlainNorm | None, report: Report) -> None:
    if norm is None:
        return
    _check_eps(norm, report)
    if isinstance(norm, Norm):
        check_norm(spec, norm, report)


def _check_eps(norm: Any, report: Report) -> None:
    if norm.eps is not None and not 0 <= norm.eps < 1:
        report.add(
            "out-of-range",
            f"eps is {norm.eps:g}",
            span=norm.span("eps"),
            expected="a small number, 1e-5 for instance",
        )


# Heads


def check_head_dims(spec: Spec, report: Report) -> None:
    for name, head in spec.heads.items():
        for dim in head.dims:
            if dim not in spec.dims:
                report.add(
                    "unknown-dim",
                    f"heads.{name} changes {dim!r}, which is not a dim of this spec",
                    span=head.node["dims"].key_span(dim),
                    expected=one_of(spec.dims),
                    nearest=nearest(dim, spec.dims),
                )
