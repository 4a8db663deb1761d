"""What flows along an edge of the layer graph, with sizes that may be names.

A size is an int or a `Sym`: a sum of named sizes with whole factors, e.g. `T + 197` or `2*B`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

DType = Literal["float", "int", "bool"]


@dataclass(frozen=True)
class Sym:
    """`const` plus each named size times its factor. Terms are sorted and never zero."""

    terms: tuple[tuple[str, int], ...]
    const: int = 0

    def __str__(self) -> str:
        factors = ((name, "" if abs(k) == 1 else f"{abs(k)}*", k) for name, k in self.terms)
        text = "".join(f"{'-' if k < 0 else '+'}{times}{name}" for name, times, k in factors)
        return (text + (f"{self.const:+d}" if self.const else "")).removeprefix("+")


_TERM = re.compile(r"([+-]?)(?:(\d+)\*)?(\w+)")
Dim = int | Sym
Shape = tuple[Dim, ...]


def sym(name: str) -> Dim:
    """A named size."""
    return Sym(((name, 1),))


def _make(terms: Mapping[str, int], const: int) -> Dim:
    kept = tuple(sorted((name, k) for name, k in terms.items() if k))
    return Sym(kept, const) if kept else const


def add(*dims: Dim) -> Dim:
    """The sum of sizes."""
    terms: dict[str, int] = {}
    const = 0
    for dim in dims:
        if isinstance(dim, int):
            const += dim
            continue
        const += dim.const
        for name, k in dim.terms:
            terms[name] = terms.get(name, 0) + k
    return _make(terms, const)


def multiply(a: Dim, b: Dim) -> Dim:
    """The product of two sizes, one of which must be an int."""
    if isinstance(a, Sym):
        a, b = b, a
    if isinstance(a, Sym):
        raise ValueError(f"{a} times {b} has no name")
    if isinstance(b, int):
        return a * b
    return _make({name: k * a for name, k in b.terms}, b.const * a)


def divide(a: Dim, b: int) -> Dim | None:
    """a / b where it is exact, else None."""
    if isinstance(a, int):
        return a // b if b and a % b == 0 else None
    if not b or a.const % b or any(k % b for _, k in a.terms):
        return None
    return _make({name: k // b for name, k in a.terms}, a.const // b)


def number(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The size as an int, with values for its names."""
    if isinstance(dim, int):
        return dim
    return dim.const + sum(k * sizes[name] for name, k in dim.terms)


def parse_dim(text: str) -> Dim:
    """The inverse of str()."""
    total: list[Dim] = []
    for sign, factor, name in _TERM.findall(text):
        size = int(name) if name.isdigit() else sym(name)
        total.append(multiply(int(f"{sign}{factor or 1}"), size))
    return add(*total)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a shape. float: whatever floating type the model has."""

    shape: Shape
    dtype: DType = "float"

    def __str__(self) -> str:
        kind = "" if self.dtype == "float" else f":{self.dtype}"
        return f"[{','.join(map(str, self.shape))}]{kind}"


@dataclass(frozen=True)
class History:
    """A list of `length` tensors of one shape: what earlier blocks put out."""

    length: int
    shape: Shape

    def __str__(self) -> str:
        return f"{self.length}x[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Sizes:
    """How many tokens each segment of a sequence has."""

    dims: Shape

    def __str__(self) -> str:
        return f"sizes({','.join(map(str, self.dims))})"


Type = Tensor | History | Sizes


def to_plain(value: Type) -> dict[str, Any]:
    """A type as plain data for JSON."""
    match value:
        case Tensor(shape, dtype):
            return {"tensor": [str(d) for d in shape], "dtype": dtype}
        case History(length, shape):
            return {"history": [str(d) for d in shape], "length": length}
        case Sizes(dims):
            return {"sizes": [str(d) for d in dims]}


def from_plain(data: Mapping[str, Any]) -> Type:
    """The inverse of to_plain."""

    def shape(items: Iterable[str]) -> Shape:
        return tuple(parse_dim(item) for item in items)

    if "tensor" in data:
        return Tensor(shape(data["tensor"]), data["dtype"])
    if "history" in data:
        return History(data["length"], shape(data["history"]))
    return Sizes(shape(data["sizes"]))
