"""Checks what a user gives to a program, before torch says it in its own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from multiway.specs.errors import Report, nearest, one_of


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An input of a program. A size that is a string may be anything, but the same everywhere."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str  # float, int, bool
    below: int | None = None  # numbers in it must be smaller
    ends: str = "vocabulary ends"  # what it is that ends there
    ignored: int | None = None  # but this one may stand for none
    longest: int | None = None  # limit of the second axis
    many: int = 0  # a list of this many tensors, of these shapes
    shapes: tuple[tuple[int | str, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    slots: Callable[[Mapping[str, int]], int] | None = None  # of a cache that a program fills


_GOOD: dict[str, Callable[[torch.Tensor], bool]] = {
    "float": lambda t: t.is_floating_point(),
    "int": lambda t: t.dtype in (torch.int64, torch.int32),
    "bool": lambda t: t.dtype in (torch.bool, torch.int64, torch.int32, torch.uint8),
}


def check_inputs(
    program: str, expected: Sequence[Expected], args: Sequence[Any], given: Mapping[str, Any]
) -> list[Any]:
    """The inputs in the order of the program, from those in order and those by name. An absent
    padding or mask means: none.

    Raises MultiwayError naming every input that does not fit. Under torch.compile and torch.export
    only names are looked at: a check of values would break the graph, or be worked out for good.
    """
    report, known = Report(), [each.name for each in expected]
    named = {**dict(zip(known, args, strict=False)), **given}
    if len(named) < len(args) + len(given) or not named.keys() <= set(known):
        _check_names(program, known, args, given, report)
    if torch.compiler.is_compiling():
        report.raise_if_any()
    else:
        _check_all(program, expected, named, report)
    return _complete(expected, named)


def _check_names(
    program: str, known: list[str], args: Sequence[Any], given: Mapping[str, Any], report: Report
) -> None:
    """Adds inputs that there are not, or that are there twice."""
    if len(args) > len(known):
        report.add(
            "unknown-input",
            f"{program!r} takes {len(known)} inputs, and {len(args)} are given",
            place="input",
            expected=", ".join(known),
        )
    for name in given:
        if name in known[: len(args)]:
            report.add("twice", f"{name!r} is given in order and by name", place="input")
        elif name not in known:
            report.add(
                "unknown-input",
                f"{name!r} is not an input of {program!r}",
                place="input",
                expected=one_of(known),
                nearest=nearest(name, known),
            )


def _check_all(
    program: str, expected: Sequence[Expected], given: Mapping[str, Any], report: Report
) -> None:
    """Raises MultiwayError naming every input that does not fit, and what the report has."""
    sizes: dict[str, tuple[int, str]] = {}
    for each in expected:
        value = given.get(each.name)
        if value is None:
            if not _optional(each):
                report.add("missing-input", f"{program!r} needs {each.name!r}", place="input")
        elif each.many:
            _check_list(each, value, sizes, report)
        else:
            _check(each, value, sizes, report)
    report.raise_if_any()
    _check_slots(expected, given, {name: size for name, (size, _) in sizes.items()}, report)
    report.raise_if_any()


def _complete(expected: Sequence[Expected], given: Mapping[str, Any]) -> list[Any]:
    """The inputs in order, with zeros for absent paddings and masks."""
    sizes: dict[str, int] = {}
    device = None
    for each in expected:
        value = given.get(each.name)
        if isinstance(value, torch.Tensor):
            device = value.device
            sizes |= {
                s: n for s, n in zip(each.shape, value.shape, strict=True) if isinstance(s, str)
            }
    found = []
    for each in expected:
        value = given.get(each.name)
        if value is None:
            shape = [s if isinstance(s, int) else sizes[s] for s in each.shape]
            value = torch.zeros(shape, dtype=torch.bool, device=device)
        elif each.dtype == "bool":
            value = value.bool()
        found.append(value)
    return found


def _optional(each: Expected) -> bool:
    return each.name.endswith(("_padding", "_masked"))


def _check_list(
    each: Expected, value: Any, sizes: dict[str, tuple[int, str]], report: Report
) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != each.many:
        report.add("wrong-input", f"{each.name!r} is a list of {each.many} tensors", place="input")
        return
    for i, (shape, dtype) in enumerate(zip(each.shapes, each.dtypes, strict=True)):
        one = Expected(name=f"{each.name}[{i}]", shape=shape, dtype=dtype)
        _check(one, value[i], sizes, report)


def _check_slots(
    expected: Sequence[Expected],
    given: Mapping[str, Any],
    sizes: Mapping[str, int],
    report: Report,
) -> None:
    """Whether a cache has a slot for every token that the program writes."""
    cache = next((each for each in expected if each.slots is not None), None)
    if cache is None or cache.slots is None:
        return
    needed = cache.slots(sizes)
    positions = given.get("positions")
    if positions is not None and positions.device.type == "cpu" and positions.numel():
        needed = max(needed, int((given[cache.name][0][:, None] + positions).max()) + 1)
    if needed > sizes["S"]:
        report.add(
            "too-long",
            f"{cache.name!r} has {sizes['S']} slots, and the tokens need {needed}",
            place="input",
        )


def _check(each: Expected, value: Any, sizes: dict[str, tuple[int, str]], report: Report) -> None:
    if not isinstance(value, torch.Tensor):
        found = type(value).__name__
        report.add("wrong-input", f"{each.name!r} is a {found}", place="input", expected="a tensor")
        return
    shown = "[" + ", ".join(map(str, each.shape)) + "]"
    if value.dim() != len(each.shape):
        report.add(
            "wrong-input",
            f"{each.name!r} has shape {list(value.shape)}",
            place="input",
            expected=shown,
        )
        return
    for size, want in zip(value.shape, each.shape, strict=True):
        if isinstance(want, str):
            first, place = sizes.setdefault(want, (size, each.name))
            want, shown = first, f"{shown}, with {want} = {first} as in {place!r}"
        if size != want:
            message = f"{each.name!r} has shape {list(value.shape)}"
            report.add("wrong-input", message, place="input", expected=shown)
            return
    if not _GOOD[each.dtype](value):
        message = f"{each.name!r} holds {str(value.dtype).removeprefix('torch.')}"
        report.add("wrong-input", message, place="input", expected=each.dtype)
        return
    _check_range(each, value, report)


def _check_range(each: Expected, value: torch.Tensor, report: Report) -> None:
    if each.longest is not None and value.shape[1] > each.longest:
        report.add(
            "too-long",
            f"{each.name!r} has {value.shape[1]} tokens, there are positions for {each.longest}",
            place="input",
        )
    # Looking at ids would make an accelerator wait; there the look-up itself complains.
    if each.below is None or value.device.type != "cpu" or not value.numel():
        return
    ids = value if each.ignored is None else value[value != each.ignored]
    if not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= each.below:
        bad = low if low < 0 else high
        report.add(
            "out-of-vocabulary",
            f"{each.name!r} holds the id {bad}; the {each.ends} at {each.below - 1}",
            place="input",
        )
