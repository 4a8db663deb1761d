"""Which parameters a spec declares: path, shape and initial values, without building a graph.

A program may read only some of them; a model always holds all, so that saved files do not depend
on what was run.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping

from multiway.compiler.graph import Param
from multiway.compiler.init import ZEROS, Init
from multiway.compiler.op import registry
from multiway.specs.config import Config
from multiway.specs.errors import MultiwayError
from multiway.specs.language import Block, Experts, Generator, Initial, Norm, PlainNorm
from multiway.specs.spec import Spec

MAX_PARAMETERS = 4_000_000_000_000


def start_of(op: str, role: str) -> Init:
    """How a parameter of an op starts where nothing else is said."""
    return registry()[op].params[role]


def ways_of(spec: Spec, experts: Experts | None) -> tuple[str, ...]:
    """The ways of a part, by name; one nameless way where it is not routed."""
    if experts is None:
        return ("",)
    fused = experts.fused
    return (*spec.modalities, *(["fused"] if fused is not None and fused.where else []))


def join(*parts: str) -> str:
    """A path of its non-empty parts."""
    return ".".join(part for part in parts if part)


def norm_kind(norm: PlainNorm, default: PlainNorm) -> str:
    """The kind of a norm, inherited from block.norm where it gives none."""
    return norm.kind or default.kind or "layer_norm"


def norm_eps(norm: PlainNorm, default: PlainNorm) -> float:
    eps = norm.eps if norm.eps is not None else default.eps
    assert eps is not None
    return eps


def has_bias(norm: PlainNorm, default: PlainNorm) -> bool:
    return norm.bias if norm.bias is not None else norm_kind(norm, default) == "layer_norm"


def split_norms(spec: Spec, layer: int) -> bool:
    """Whether the query, key and value inputs of a block are normed apart."""
    mixed = any(stream in spec.wiring.streams for stream in "qkv")
    return mixed and (layer > 0 or spec.wiring.first_block == "three_norms")


def mix_ways(spec: Spec, layer: int) -> tuple[str, ...]:
    """The streams that are mixed before a block; `layer` = depth stands for the output."""
    if layer == 0:
        return ()
    if layer == spec.depth:
        return ("r",) if "r" in spec.wiring.streams else ()
    return tuple(s for s in "qkvr" if s in spec.wiring.streams)


class Declared(dict[str, Param]):
    """The parameters of a spec by path. Heads add their own."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.patterns = [
            (re.compile(fnmatch.translate(pattern)), initial)
            for pattern, initial in reversed(list(spec.init.items()))
        ]

    def add(self, path: str, shape: tuple[int, ...], init: Init, part: Config | None) -> None:
        assert path not in self, f"two parameters at {path}"
        init = self._chosen(path, shape) or init
        self[path] = Param(path=path, shape=shape, init=init, span=part.span() if part else None)

    def _chosen(self, path: str, shape: tuple[int, ...]) -> Init | None:
        """The last entry of the spec's `init` that matches, with its numbers worked out."""
        for pattern, initial in self.patterns:
            if pattern.match(path):
                return initial_values(initial, shape)
        return None

    def linear(
        self,
        path: str,
        *,
        out: int,
        width: int,
        bias: bool,
        part: Config | None,
        init: Init | None = None,
    ) -> None:
        self.add(f"{path}.weight", (out, width), init or start_of("linear", "weight"), part)
        if bias:
            self.add(f"{path}.bias", (out,), start_of("linear", "bias"), part)

    def norm(
        self,
        path: str,
        norm: PlainNorm | None,
        *,
        width: int,
        ways: tuple[str, ...] = ("",),
        default: PlainNorm | None = None,
    ) -> None:
        """default: the norm whose kind is inherited; outside of blocks that of the first block."""
        if norm is None:
            return
        default = default or self.spec.blocks[0].norm
        if isinstance(norm, Norm) and norm.experts is not None:
            ways = ways_of(self.spec, norm.experts)
        kind = norm_kind(norm, default)
        for way in ways if norm.weight else ():
            self.add(join(path, way, "weight"), (width,), start_of(kind, "weight"), norm)
            if has_bias(norm, default):
                self.add(join(path, way, "bias"), (width,), start_of(kind, "bias"), norm)


def initial_values(initial: Initial, shape: tuple[int, ...]) -> Init:
    """An `init` entry with numbers for its formulas."""
    fan_out, fan_in = fans(shape)
    numbers = {
        name: formula.number(fan_in=fan_in, fan_out=fan_out)
        for name in ("std", "cut", "bound", "value")
        if (formula := getattr(initial, name)) is not None
    }
    _check_initial(initial, shape, numbers)
    return Init(kind=initial.kind, **numbers)


def _check_initial(initial: Initial, shape: tuple[int, ...], numbers: Mapping[str, float]) -> None:
    """Raises MultiwayError for numbers that give no distribution."""
    for name in ("std", "cut", "bound"):
        if name in numbers and numbers[name] <= 0:
            message = f"{name} {numbers[name]:g}"
            raise MultiwayError.one(
                "too-small", message, span=initial.span(name), expected="more than 0"
            )
    if initial.kind == "newest" and len(shape) != 2:
        raise MultiwayError.one(
            "unknown-value",
            "newest is for the weights of a mix, which have streams and sources",
            span=initial.span("kind"),
        )


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan out, fan in) as torch counts them."""
    if len(shape) < 2:
        return (shape[0] if shape else 1,) * 2
    rest = math.prod(shape[2:])
    return shape[0] * rest, shape[1] * rest


def declare(spec: Spec) -> Mapping[str, Param]:
    """Every parameter of the spec as its head has it, in a fixed order. Raises MultiwayError."""
    declared = Declared(spec)
    _embed(spec, declared)
    for layer, block in enumerate(spec.blocks):
        _mix(spec, declared, layer)
        _block(spec, declared, layer, block)
    _mix(spec, declared, spec.depth)
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


def _mix(spec: Spec, declared: Declared, layer: int) -> None:
    ways, sources = mix_ways(spec, layer), layer + 1
    if not ways:
        return
    path = f"blocks.{layer}.mix" if layer < spec.depth else "output.mix"
    wiring = spec.wiring
    if wiring.static is not None:
        shape = (len(ways), sources)
        initial = wiring.static.init
        init = initial_values(initial, shape) if initial else start_of("depth_weights", "static")
        declared.add(f"{path}.static", shape, init, wiring.static)
    if wiring.generator is not None:
        _generator(spec, declared, path, wiring.generator, ways=len(ways), sources=sources)


def generator_norm(generator: Generator) -> PlainNorm:
    """The norm of a generator: an RMS norm without weight unless the spec gives one."""
    return generator.norm or PlainNorm(kind="rms_norm", weight=False, node=generator.node)


def _generator(
    spec: Spec, declared: Declared, path: str, generator: Generator, *, ways: int, sources: int
) -> None:
    last = sources == spec.depth + 1
    hidden = generator.hidden.count(ways=ways, sources=sources, last=last)
    width = spec.width
    declared.norm(f"{path}.norm", generator_norm(generator), width=width)
    fan_in = Init(kind="normal", std=width**-0.5)
    declared.linear(
        f"{path}.hidden", out=hidden, width=width, bias=False, part=generator, init=fan_in
    )
    init = initial_values(generator.init, (ways * sources, hidden)) if generator.init else ZEROS
    declared.linear(
        f"{path}.output", out=ways * sources, width=hidden, bias=False, part=generator, init=init
    )


def attention_widths(spec: Spec, block: Block) -> tuple[int, int]:
    """(width of all query heads, width of all key heads)."""
    attention = block.attention
    head = attention.head_width or spec.width // attention.heads
    return head * attention.heads, head * (attention.kv_heads or attention.heads)


def _block(spec: Spec, declared: Declared, layer: int, block: Block) -> None:
    path, width, attention = f"blocks.{layer}.attention", spec.width, block.attention
    inner, kv = attention_widths(spec, block)
    norm = attention.norm or block.norm
    for stream in "qkv" if split_norms(spec, layer) else [""]:
        declared.norm(join(path, "norm", stream), norm, width=width, default=block.norm)
    ways = ways_of(spec, attention.experts)
    for name, out in (("query", inner), ("key", kv), ("value", kv)):
        for way in ways:
            declared.linear(
                join(path, name, way), out=out, width=width, bias=attention.bias, part=attention
            )
    if (qk := attention.qk_norm) is not None:
        head = inner // attention.heads
        as_norm = PlainNorm(kind=qk.kind, eps=qk.eps, node=qk.node)
        for name, total in (("query_norm", inner), ("key_norm", kv)):
            size = head if qk.over == "head" else total
            declared.norm(f"{path}.{name}", as_norm, width=size, default=block.norm)
    declared.norm(
        f"{path}.sub_norm", attention.sub_norm, width=inner, ways=ways, default=block.norm
    )
    for way in ways:
        declared.linear(
            join(path, "output", way), out=width, width=inner, bias=attention.bias, part=attention
        )
    _ffn(spec, declared, layer, block)


def _ffn(spec: Spec, declared: Declared, layer: int, block: Block) -> None:
    path, width, ffn = f"blocks.{layer}.ffn", spec.width, block.ffn
    declared.norm(f"{path}.norm", ffn.norm or block.norm, width=width, default=block.norm)
    ways = ways_of(spec, ffn.experts)
    for name in ("up", "gate") if ffn.gate else ("up",):
        for way in ways:
            declared.linear(
                join(path, name, way), out=ffn.hidden, width=width, bias=ffn.bias, part=ffn
            )
    declared.norm(f"{path}.sub_norm", ffn.sub_norm, width=ffn.hidden, ways=ways, default=block.norm)
    for way in ways:
        declared.linear(
            join(path, "down", way), out=width, width=ffn.hidden, bias=ffn.bias, part=ffn
        )
