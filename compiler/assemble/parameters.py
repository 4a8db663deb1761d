"""Parameters of a spec while they are being declared, with what decides how each starts."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping

from multiway.compiler.graph.init import Init, scaled
from multiway.compiler.graph.layer_graph import Param
from multiway.compiler.graph.registry import registry
from multiway.specs.errors import MultiwayError
from multiway.specs.language.fields import Config
from multiway.specs.language.parts import Initial
from multiway.specs.language.routing import Chosen
from multiway.specs.spec import Spec


def start_of(op: str, role: str) -> Init:
    """How a parameter of an op starts where nothing else is said."""
    return registry()[op].params[role]


def initial_or(initial: Initial | None, shape: tuple[int, ...], default: Init) -> Init:
    """How a parameter starts: as its part of the spec says, or else by default."""
    return initial_values(initial, shape) if initial is not None else default


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
