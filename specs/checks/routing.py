"""What a well-formed routing can still get wrong: ways that do not fit the modalities, experts
where there can be none, routes that see the future."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multiway.specs.errors import Report, nearest, one_of, quote
from multiway.specs.language.inputs import Form
from multiway.specs.language.parts import Norm
from multiway.specs.language.routing import Chosen, Experts, Fused, Hash, Modality, chosen

if TYPE_CHECKING:
    from multiway.specs.language.block import Block
    from multiway.specs.spec import Spec
    from multiway.specs.text.source import Node

_WAY = r"[a-z][a-z0-9_]*"


def check_experts(spec: Spec, experts: Experts | None, report: Report, *, shared: str = "") -> None:
    """Adds what is wrong with the routing of a part. shared: why it can have no shared expert."""
    if isinstance(experts, Modality):
        _check_ways(spec, experts, report)
        if experts.fused is not None:
            _check_fused(spec, experts.fused, report)
    inner = chosen(experts)
    if inner is None:
        return
    if shared and inner.shared is not None:
        report.add(
            "shared-experts",
            f"{shared} cannot have a shared expert",
            span=inner.node.key_span("shared"),
            expected="shared experts in ffn",
        )
    if isinstance(inner, Hash):
        _check_hash(spec, inner, report)


def check_norm(spec: Spec, norm: Norm, report: Report) -> None:
    """The same for a norm."""
    check_experts(spec, norm.experts, report, shared="a norm")
    if chosen(norm.experts) is not None and not norm.weight:
        report.add(
            "unused-key",
            "the experts of this norm would have no parameters",
            span=norm.span("experts"),
            expected="weight: true, or no experts",
        )


def _check_ways(spec: Spec, experts: Modality, report: Report) -> None:
    if not experts.ways:
        return
    known, node, before = spec.modalities, experts.node["ways"], len(report.problems)
    taken: dict[str, str] = {}
    for way, modalities in experts.ways.items():
        if way == "fused" or not re.fullmatch(_WAY, way):
            report.add(
                "bad-name",
                f"{quote(way)} cannot name a way",
                span=node.key_span(way),
                expected="small letters, digits and _, beginning with a letter; not `fused`",
            )
        for modality, each in zip(modalities, node[way].value, strict=True):
            if modality not in known:
                _unknown(modality, known, each, report)
            elif modality in taken:
                report.add(
                    "duplicate-value",
                    f"modality {modality!r} has two ways",
                    span=each.span,
                    expected="one way for each modality",
                    notes=(("first", f"way {taken[modality]!r}"),),
                )
            taken.setdefault(modality, way)
    missing = [modality for modality in known if modality not in taken]
    if missing and len(report.problems) == before:
        report.add(
            "no-way",
            f"modality {missing[0]!r} has no way",
            span=node.span,
            expected=f"every modality in a way; {missing[0]}: [{missing[0]}], for instance",
            notes=(("modalities", ", ".join(known)),),
        )


def _check_fused(spec: Spec, fused: Fused, report: Report) -> None:
    known = spec.modalities
    for modality, node in zip(fused.when, fused.node["when"].value, strict=True):
        if modality not in known:
            _unknown(modality, known, node, report)
    if len(fused.when) < 2:
        report.add(
            "fused-way",
            "a fused way serves several modalities together",
            span=fused.span("when"),
            expected=f"when: [{', '.join(known[:2])}]" if len(known) > 1 else "a second modality",
        )


def _unknown(modality: str, known: tuple[str, ...], node: Node, report: Report) -> None:
    report.add(
        "unknown-modality",
        f"no input has modality {modality!r}",
        span=node.span,
        expected=one_of(known),
        nearest=nearest(modality, known),
    )


def _check_hash(spec: Spec, experts: Hash, report: Report) -> None:
    for name, each in spec.inputs.items():
        if each.form() != Form.TOKENS:
            report.add(
                "input-form",
                f"hash routes by token ids, and the input {name!r} has none",
                span=experts.span("route"),
                expected="top_k or expert_choice, or inputs of token ids alone",
                notes=((name, f"at {each.node.span}"),),
            )
            return


def routings(spec: Spec) -> Iterator[tuple[str, Experts]]:
    """Every routing of a spec, with what its part is called; of equal blocks once."""
    found: list[tuple[str, Experts | None]] = []
    for block in dict.fromkeys(spec.blocks):
        found += _of_block(block)
    if spec.output.norm is not None:
        found.append(("output.norm", spec.output.norm.experts))
    yield from ((name, experts) for name, experts in found if experts is not None)


def _of_block(block: Block) -> Iterator[tuple[str, Experts | None]]:
    yield "norm", block.norm.experts
    for name, part in (("attention", block.attention), ("ffn", block.ffn)):
        yield name, part.experts
        if part.norm is not None:
            yield f"{name}.norm", part.norm.experts


def require_causal(spec: Spec, kind: str, report: Report) -> None:
    """Adds a problem for every routing by which a token depends on later ones, for a head of a kind
    that predicts from the past."""
    said: set[Chosen] = set()
    for _, experts in routings(spec):
        inner = chosen(experts)
        if inner is None or inner.causal or getattr(inner, "acausal", False) or inner in said:
            continue
        said.add(inner)
        key = "capacity" if inner.node.get("capacity") is not None else "route"
        what = "capacity lets" if key == "capacity" else "expert_choice lets"
        report.add(
            "not-causal",
            f"{kind} predicts from the past, but {what} later tokens decide over earlier ones",
            span=inner.node.key_span(key),
            expected="top_k without capacity, or `acausal: true` to have it on purpose",
        )
