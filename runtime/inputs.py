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
    program: str, expected: Sequence[Expected], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs in the order of the program. An absent padding or mask means: none.

    Raises MultiwayError naming every input that does not fit.
    """
    report = Report()
    known = [each.name for each in expected]
    for name in given:
        if name not in known:
            report.add(
                "unknown-input",
                f"{name!r} is not an input of {program!r}",
                place="input",
                expected=one_of(known),
                nearest=nearest(name, known),
            )
    sizes: dict[str, tuple[int, str]] = {}
    found: dict[str, Any] = {}
    for each in expected:
        value = given.get(each.name)
        if value is None:
            found[each.name] = None
            if not _optional(each):
                report.add("missing-input", f"{program!r} needs {each.name!r}", place="input")
        elif each.many:
            found[each.name] = _check_list(each, value, sizes, report)
        else:
            found[each.name] = _check(each, value, sizes, report)
    report.raise_if_any()
    _check_slots(expected, found, {name: size for name, (size, _) in sizes.items()}, report)
    report.raise_if_any()
    device = next(v.device for v in found.values() if isinstance(v, torch.Tensor))
    for each in expected:
        if found[each.name] is None:
            shape = [s if isinstance(s, int) else sizes[s][0] for s in each.shape]
            found[each.name] = torch.zeros(shape, dtype=torch.bool, device=device)
    return found


def _optional(each: Expected) -> bool:
    return each.name.endswith(("_padding", "_masked"))


def _check_list(
    each: Expected, value: Any, sizes: dict[str, tuple[int, str]], report: Report
) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != each.many:
        report.add("wrong-input", f"{each.name!r} is a list of {each.many} tensors", place="input")
        return value
    for i, (shape, dtype) in enumerate(zip(each.shapes, each.dtypes, strict=True)):
        one = Expected(name=f"{each.name}[{i}]", shape=shape, dtype=dtype)
        _check(one, value[i], sizes, report)
    return value


def _check_slots(
    expected: Sequence[Expected],
    found: Mapping[str, Any],
    sizes: Mapping[str, int],
    report: Report,
) -> None:
    """Whether a cache has a slot for every token that the program writes."""
    cache = next((each for each in expected if each.slots is not None), None)
    if cache is None or cache.slots is None:
        return
    needed = cache.slots(sizes)
    positions = found.get("positions")
    if positions is not None and positions.device.type == "cpu" and positions.numel():
        needed = max(needed, int((found[cache.name][0][:, None] + positions).max()) + 1)
    if needed > sizes["S"]:
        report.add(
            "too-long",
            f"{cache.name!r} has {sizes['S']} slots, and the tokens need {needed}",
            place="input",
        )


def _check(each: Expected, value: Any, sizes: dict[str, tuple[int, str]], report: Report) -> Any:
    if not isinstance(value, torch.Tensor):
        found = type(value).__name__
        report.add("wrong-input", f"{each.name!r} is a {found}", place="input", expected="a tensor")
        return value
    shown = "[" + ", ".join(map(str, each.shape)) + "]"
    if value.dim() != len(each.shape):
        report.add(
            "wrong-input",
            f"{each.name!r} has shape {list(value.shape)}",
            place="input",
            expected=shown,
        )
        return value
    for size, want in zip(value.shape, each.shape, strict=True):
        if isinstance(want, str):
            first, place = sizes.setdefault(want, (size, each.name))
            want, shown = first, f"{shown}, with {want} = {first} as in {place!r}"
        if size != want:
            message = f"{each.name!r} has shape {list(value.shape)}"
            report.add("wrong-input", message, place="input", expected=shown)
            return value
    if not _GOOD[each.dtype](value):
        message = f"{each.name!r} holds {str(value.dtype).removeprefix('torch.')}"
        report.add("wrong-input", message, place="input", expected=each.dtype)
        return value
    _check_range(each, value, report)
    return value.bool() if each.dtype == "bool" else value


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
