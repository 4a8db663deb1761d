"""The record of an op. An op is one file in compiler/ops; nothing else needs to know of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal

from multiway.compiler.graph.init import Init
from multiway.compiler.graph.signature import Signature, infer, parse_signature
from multiway.compiler.graph.types import Type

Memory = Literal["own", "view", "list", "sizes"]
Packs = Literal["each", "together"]
Letters = Mapping[str, int]
"""Sizes by letter of the signature; `*` is the product of the leading axes."""


@dataclass(frozen=True)
class Attr:
    """An attribute of an op. With a `letter`, its value (of a list: its length) binds that letter
    of the signature. A `hint` helps a kernel; no number depends on it."""

    doc: str
    default: Any = None
    letter: str = ""
    hint: bool = False


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Shapes on which the generic tests run an op. Ints below `below` fill what is not a float;
    `values` are those of inputs that matter where a draw would seldom give them."""

    shapes: Mapping[str, Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    below: int = 4
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Shapes that an op must refuse, and the text with which it does."""

    shapes: Mapping[str, Any]
    error: str
    attrs: Mapping[str, Any] = field(default_factory=dict)


def _no_flops(_: Letters) -> float:
    return 0


@dataclass(frozen=True, kw_only=True)
class Op:
    """What an op is. `reference` is the only definition of its meaning: slow, obvious, and right in
    any float type. Its positional parameters are the inputs of the signature, in that order; its
    keyword parameters are the attributes.

    `formula` says the same in numpy, by another way than the reference goes: it takes float64
    arrays for tensors and gives arrays of the same shapes. That of a random op also takes
    `uniform`, the numbers in [0, 1) that the reference draws, or None while gradients are off. A
    composed op has none: the ops that it is made of have theirs.

    memory: what its outputs are in memory: numbers of their own, a `view` of its first input, a
    `list` of what it reads, or `sizes`, which are no numbers. Only those of its own are written.
    packs: how an inference program lays its weights out: each for a product of its own, or all
    together for one.
    """

    signature: str
    reference: Callable[..., Any]
    doc: str
    formula: Callable[..., Any] | None = None
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    params: Mapping[str, Init] = field(default_factory=dict)  # role to how it starts
    derive: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    flops: Callable[[Letters], float] = _no_flops
    tokenwise: tuple[str, ...] = ()  # inputs that run along the tokens, each token for itself
    saves: tuple[str, ...] = ()  # inputs ("output", "inner": one of its size) that backward needs
    memory: Memory = "own"
    elementwise: bool = False  # a function of every element of x alone: may be an activation
    norm: bool = False  # a norm over the last axis, of x by weight and bias
    products: int | None = None  # matrix products; None: those of the ops a composed one calls
    packs: Packs | None = None
    random: bool = False  # draws numbers: two calls with the same inputs differ
    once: bool = False  # reads parameters only, and inference programs keep what it gives
    composed: bool = False  # the reference calls other ops only: a fused op
    samples: Sequence[Sample] = ()
    rejects: Sequence[Reject] = ()
    cite: str = ""

    def __post_init__(self) -> None:
        plain = self.signature == "x[*] -> y[*]" and not self.params
        assert plain or not self.elementwise, "an elementwise op is x[*] -> y[*]"

    @property
    def name(self) -> str:
        return self.reference.__name__

    @functools.cached_property
    def public(self) -> Callable[..., Any]:
        """The reference as multiway/ops.py exports it: lowered code names it by its home."""
        own = self.reference
        assert isinstance(own, FunctionType)
        made = FunctionType(own.__code__, own.__globals__, argdefs=own.__defaults__)
        made.__kwdefaults__, made.__annotations__ = own.__kwdefaults__, own.__annotations__
        made.__module__ = "multiway.ops"
        return made

    @property
    def moves_memory(self) -> bool:
        """Whether its outputs are written when it runs, each time that it runs."""
        return self.memory == "own" and not self.once

    @property
    def view_of(self) -> str:
        """The input that its outputs are views of, empty where they are none."""
        return self.parsed.inputs[0].name if self.memory == "view" else ""

    @property
    def parsed(self) -> Signature:
        return parse_signature(self.signature)

    def full_attrs(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with their defaults, in declared order."""
        unknown = set(attrs) - set(self.attrs)
        assert not unknown, f"{self.name} has no attribute {unknown}"
        return {name: attrs.get(name, attr.default) for name, attr in self.attrs.items()}

    def letters(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """The letters that attributes bind."""
        found = {a.letter: attrs[n] for n, a in self.attrs.items() if a.letter}
        return {k: len(v) if isinstance(v, (list, tuple)) else v for k, v in found.items()}

    def types(
        self, arguments: Mapping[str, Type | Sequence[Type]], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        """Output types for argument types (inputs and parameters). Raises ShapeError."""
        return self._inferred(arguments, attrs)[0]

    def sizes(
        self, arguments: Mapping[str, Type | Sequence[Type]], attrs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What every letter of the signature stands for. Raises ShapeError."""
        return dict(self._inferred(arguments, attrs)[1])

    def _inferred(
        self, arguments: Mapping[str, Type | Sequence[Type]], attrs: Mapping[str, Any]
    ) -> tuple[tuple[Type, ...], Mapping[str, Any]]:
        given = tuple(
            (name, value if isinstance(value, Type) else tuple(value))
            for name, value in arguments.items()
        )
        return _inferred(self.signature, self.derive, given, tuple(self.letters(attrs).items()))


@functools.lru_cache(maxsize=8192)
def _inferred(
    signature: str,
    derive: Callable[[dict[str, Any]], dict[str, Any]] | None,
    arguments: tuple[tuple[str, Any], ...],
    letters: tuple[tuple[str, Any], ...],
) -> tuple[tuple[Type, ...], Mapping[str, Any]]:
    """Output types and letters; blocks of one layout ask the same again and again."""
    types, binding = infer(parse_signature(signature), dict(arguments), dict(letters), derive)
    return types, binding.letters
