"""Parameters of a spec while they are being declared, with what decides how each starts."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping

from multiway.compiler.graph import Param
from multiway.compiler.init import Init, scaled
from multiway.compiler.op import registry
from multiway.specs.config import Config
from multiway.specs.errors import MultiwayError
from multiway.specs.parts import Initial, Norm, PlainNorm
from multiway.specs.routing import Chosen, Experts, Modality, TopK, chosen
from multiway.specs.spec import Spec


def start_of(op: str, role: str) -> Init:
    """How a parameter of an op starts where nothing else is said."""
    return registry()[op].params[role]


def ways_of(spec: Spec, experts: Experts | None) -> tuple[str, ...]:
    """The ways of a part, by name; one nameless way where it is not routed."""
    if not isinstance(experts, Modality):
        return ("",)
    fused = experts.fused
    ways = dict.fromkeys(map(experts.way_of, spec.modalities))
    return (*ways, *(["fused"] if fused is not None and fused.where else []))


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


class Declared(dict[str, Param]):
    """The parameters of a spec by path. Heads add their own."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        entries = [*spec.wiring.init.items(), *spec.init.items()]
        self.patterns = [
            (re.compile(fnmatch.translate(pattern)), initial)
            for pattern, initial in reversed(entries)
        ]

    def add(
        self,
        path: str,
        shape: tuple[int, ...],
        init: Init,
        part: Config | None,
        *,
        experts: Chosen | None = None,
        rate: float | None = None,
    ) -> None:
        """experts: those of which this holds one entry each."""
        assert path not in self, f"two parameters at {path}"
        self[path] = Param(
            path=path,
            shape=(experts.count, *shape) if experts else shape,
            init=self._chosen(path, shape, init),
            span=part.span() if part else None,
            active=experts.used / experts.count if experts else 1.0,
            rate=rate,
        )

    def _chosen(self, path: str, shape: tuple[int, ...], init: Init) -> Init:
        """The last entry of the spec's `init` that matches, with its numbers worked out, and the
        scales that stand behind it; `init` where none matches."""
        scales = []
        for pattern, initial in self.patterns:
            if not pattern.match(path):
                continue
            if initial.kind != "scaled":
                init = initial_values(initial, shape)
                break
            scales.append(initial)
        for initial in reversed(scales):
            init = _scaled(init, initial, shape, path)
        return init

    def linear(
        self,
        path: str,
        *,
        out: int,
        width: int,
        bias: bool,
        part: Config | None,
        init: Init | None = None,
        experts: Chosen | None = None,
    ) -> None:
        """experts: those of whose weights this is a stack."""
        init = init or start_of("linear", "weight")
        self.add(f"{path}.weight", (out, width), init, part, experts=experts)
        if bias:
            self.add(f"{path}.bias", (out,), start_of("linear", "bias"), part, experts=experts)

    def router(self, path: str, experts: Chosen | None, *, width: int) -> None:
        """The router of a part; nothing where no router decides."""
        router = experts.router_ if experts else None
        if experts is None or router is None:
            return
        if router.kind == "cosine":
            assert router.width is not None
            self.linear(f"{path}.project", out=router.width, width=width, bias=False, part=router)
            shape = (experts.count, router.width)
            self.add(f"{path}.weight", shape, start_of("cosine_scores", "weight"), router)
            start = Init(kind="constant", value=router.temperature)
            self.add(f"{path}.temperature", (), start, router)
        else:
            self.linear(path, out=experts.count, width=width, bias=router.bias, part=router)
        if isinstance(experts, TopK) and experts.balance_bias is not None:
            start, bias = start_of("top_k_gates", "bias"), experts.balance_bias
            self.add(f"{path}.balance", (experts.count,), start, bias, rate=bias.rate)

    def norm(
        self,
        path: str,
        norm: PlainNorm | None,
        *,
        width: int,
        ways: tuple[str, ...] = ("",),
        default: PlainNorm | None = None,
        experts: Chosen | None = None,
    ) -> None:
        """default: the norm whose kind is inherited; outside of blocks that of the first block.
        ways, experts: those of the part that the norm belongs to."""
        if norm is None:
            return
        default = default or self.spec.blocks[0].norm
        if isinstance(norm, Norm) and norm.experts is not None:
            ways, experts = ways_of(self.spec, norm.experts), chosen(norm.experts)
            for way in ways:
                self.router(join(path, "router", way), experts, width=width)
        kind = norm_kind(norm, default)
        for way in ways if norm.weight else ():
            for role in ("weight", "bias") if has_bias(norm, default) else ("weight",):
                start = start_of(kind, role)
                self.add(join(path, way, role), (width,), start, norm, experts=experts)


def _scaled(init: Init, initial: Initial, shape: tuple[int, ...], path: str) -> Init:
    assert initial.value is not None
    fan_out, fan_in = fans(shape)
    try:
        return scaled(init, initial.value.number(fan_in=fan_in, fan_out=fan_out))
    except KeyError:
        raise MultiwayError.one(
            "unknown-value",
            f"{path} starts as {init.kind}, which has no scale",
            span=initial.span("kind"),
            expected="a pattern that leaves it out",
        ) from None


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
    if initial.kind in ("newest", "identity") and len(shape) != 2:
        what = {
            "newest": "the weights of a mix, which have streams and sources",
            "identity": "a matrix",
        }
        raise MultiwayError.one(
            "unknown-value",
            f"{initial.kind} is for {what[initial.kind]}",
            span=initial.span("kind"),
        )


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan out, fan in) as torch counts them."""
    if len(shape) < 2:
        return (shape[0] if shape else 1,) * 2
    rest = math.prod(shape[2:])
    return shape[0] * rest, shape[1] * rest
