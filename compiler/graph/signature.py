"""The one-line signature of an op: its printed documentation and its executed shape rule.

    x[*,D], weight?[F,D], bias?[F] -> y[*,F]

A letter is bound where it is first met and must agree everywhere else; `*` stands for any number of
axes; `name?` may be absent; `A*B` and `A+1` are worked out. `parts+[B,T+,D]` is any number of
values whose `T` add up to `T+`, `parts+?` may be absent too; `stream{C}[...]` is C values. A suffix
gives what is not a float tensor: `:int`, `:bool`, `:any`, `:list` (its first letter is the length),
`:sizes`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiway.compiler.graph.types import (
    Dim,
    History,
    Shape,
    Sizes,
    Sym,
    Tensor,
    Type,
    add,
    divide,
    multiply,
)

_VALUE = re.compile(r"(\w+)(\?|\+\??|\{\w+\})?\[([^\]]*)\](?::(\w+))?")


class ShapeError(Exception):
    """Two sizes that should agree do not."""


@dataclass(frozen=True)
class Slot:
    """One value of a signature."""

    name: str
    mark: str  # "", "?" (optional), "+" (any number), "+?" (that or none), or "{C}" (C times)
    dims: tuple[str, ...]
    kind: str  # float, int, bool, list, sizes

    @property
    def optional(self) -> bool:
        return self.mark.endswith("?")

    @property
    def variadic(self) -> bool:
        return self.mark.startswith("+")


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]

    def slot(self, name: str) -> Slot:
        return next(slot for slot in self.inputs if slot.name == name)


@functools.cache
def parse_signature(text: str) -> Signature:
    left, _, right = text.partition("->")
    return Signature(_slots(left), _slots(right))


def _slots(text: str) -> tuple[Slot, ...]:
    return tuple(
        Slot(name, mark, tuple(d.strip() for d in dims.split(",") if d.strip()), kind or "float")
        for name, mark, dims, kind in _VALUE.findall(text)
    )


@dataclass
class Binding:
    """The letters of a signature and what they stand for, with where each was bound."""

    letters: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def bind(self, letter: str, value: Any, place: str) -> None:
        if letter not in self.letters:
            self.letters[letter], self.where[letter] = value, place
        elif self.letters[letter] != value:
            old, first = self.letters[letter], self.where[letter]
            raise ShapeError(f"{letter} is {show(old)} in {first} but {show(value)} in {place}")

    def value(self, term: str) -> Dim:
        """The size that a term of an output stands for."""
        if "*" in term:
            return functools.reduce(multiply, (self.value(part) for part in term.split("*")))
        if re.search(r"\w\+\w", term):
            return add(*(self.value(part) for part in term.split("+")))
        if term.isdigit():
            return int(term)
        found = self.letters[term]
        return add(*found) if term.endswith("+") else found

    def match(self, slot: Slot, shape: Shape, place: str) -> None:
        terms = spread(slot.dims, len(shape))
        if terms is None:
            raise ShapeError(
                f"{place} has {len(shape)} axes, needs {show(slot.dims)}: {show(shape)}"
            )
        if "*" in slot.dims:
            free = [size for term, size in zip(terms, shape, strict=True) if term == "*"]
            self.bind("*", tuple(free), place)
        for term, size in zip(terms, shape, strict=True):
            if term != "*":
                self.match_dim(term, size, place)

    def match_dim(self, term: str, size: Dim, place: str) -> None:
        if "*" in term:
            known, unknown = term.split("*")
            if known not in self.letters:
                known, unknown = unknown, known
            quotient = divide(size, self.letters[known])
            if quotient is None:
                what = f"{known} = {self.letters[known]}"
                raise ShapeError(f"{place}: {show(size)} is not a multiple of {what}")
            self.bind(unknown, quotient, place)
        elif term.isdigit():
            if size != int(term):
                raise ShapeError(f"{place}: {show(size)} should be {term}")
        elif term.endswith("+"):
            total = add(*self.letters[term])
            if total != size:
                raise ShapeError(
                    f"{term} is {show(total)} in {self.where[term]} but {show(size)} in {place}"
                )
        else:
            self.bind(term, size, place)


def spread(dims: tuple[str, ...], rank: int) -> list[str] | None:
    """The term of every axis, with `*` repeated to fill the rank; None where it cannot."""
    if "*" not in dims:
        return list(dims) if len(dims) == rank else None
    at, free = dims.index("*"), rank - len(dims) + 1
    return [*dims[:at], *["*"] * free, *dims[at + 1 :]] if free >= 0 else None


def show(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def group_width(letters: Mapping[str, Any]) -> dict[str, Any]:
    """A rule for `Op.derive`: E, the width of each of G groups of D. Raises ShapeError."""
    width = divide(letters["D"], letters["G"])
    if width is None:
        raise ShapeError(f"D: {show(letters['D'])} is not a multiple of G = {letters['G']}")
    return {"E": width}


def infer(
    signature: Signature,
    arguments: Mapping[str, Type | Sequence[Type]],
    letters: Mapping[str, Any],
    derive: Any,
) -> tuple[tuple[Type, ...], Binding]:
    """The output types for argument types. `letters` come from attributes. Raises ShapeError."""
    binding = Binding(dict(letters), dict.fromkeys(letters, "attributes"))
    # Segment lengths first: they say how a joined sequence divides.
    slots = sorted(signature.inputs, key=lambda slot: slot.kind != "sizes")
    for slot in slots:
        given = arguments.get(slot.name)
        if given is None:
            if not slot.optional:
                raise ShapeError(f"{slot.name} is missing")
            continue
        if slot.variadic:
            _match_many(slot, given, binding)  # type: ignore[arg-type]
        else:
            _match_one(slot, given, binding)  # type: ignore[arg-type]
    binding.letters.setdefault("*", ())
    if derive is not None:
        for letter, value in derive(binding.letters).items():
            binding.bind(letter, value, "its rule")
    return tuple(t for slot in signature.outputs for t in _made(slot, binding)), binding


def _match_one(slot: Slot, given: Type, binding: Binding, place: str = "") -> None:
    place = place or slot.name
    match given:
        case Sizes(dims) if slot.kind == "sizes":
            binding.bind(slot.dims[0], dims, place)
        case History(length, shape) if slot.kind == "list":
            binding.match(slot, (length, *shape), place)
        case Tensor(shape, dtype) if slot.kind == "any":
            binding.bind("dtype", dtype, place)
            binding.match(slot, shape, place)
        case Tensor(shape, dtype) if slot.kind == dtype:
            binding.match(slot, shape, place)
        case _:
            raise ShapeError(f"{place} should be {slot.kind}, is {given}")


def _match_many(slot: Slot, given: Sequence[Type], binding: Binding) -> None:
    summed: dict[str, list[Dim]] = {}
    plain = Slot(slot.name, "", tuple(d for d in slot.dims if not d.endswith("+")), slot.kind)
    for i, each in enumerate(given):
        assert isinstance(each, Tensor)
        place = f"{slot.name}.{i}"
        terms = spread(slot.dims, len(each.shape))
        if terms is None:
            raise ShapeError(f"{place} has {len(each.shape)} axes, needs {show(slot.dims)}")
        kept = []
        for term, size in zip(terms, each.shape, strict=True):
            if term.endswith("+"):
                summed.setdefault(term, []).append(size)
            else:
                kept.append(size)
        _match_one(plain, Tensor(tuple(kept), each.dtype), binding, place)
    for term, sizes in summed.items():
        binding.bind(term, tuple(sizes), slot.name)


def _made(slot: Slot, binding: Binding) -> list[Type]:
    if slot.kind == "sizes":
        return [Sizes(binding.letters[slot.dims[0]])]
    if slot.variadic:
        terms = [d for d in slot.dims if d.endswith("+")]
        sizes = zip(*(binding.letters[term] for term in terms), strict=True)
        return [_tensor(slot, binding, dict(zip(terms, each, strict=True))) for each in sizes]
    if slot.mark.startswith("{"):
        count = binding.letters[slot.mark[1:-1]]
        return [_tensor(slot, binding, {}) for _ in range(count)]
    return [_tensor(slot, binding, {})]


def _tensor(slot: Slot, binding: Binding, fixed: Mapping[str, Dim]) -> Type:
    dims: list[Dim] = []
    for term in slot.dims:
        if term == "*":
            dims += binding.letters["*"]
        else:
            dims.append(fixed[term] if term in fixed else binding.value(term))
    if slot.kind == "list":
        length = dims[0]
        assert not isinstance(length, Sym)
        return History(length, tuple(dims[1:]))
    dtype: Any = binding.letters["dtype"] if slot.kind == "any" else slot.kind
    return Tensor(tuple(dims), dtype)
