"""The small members of the zoo with their heads: what generic tests run over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import multiway as mw
from multiway.zoo import catalogue

MEMBERS = [
    (entry.name, head)
    for entry in catalogue()
    if entry.name.endswith("-test")
    for head in mw.load(entry.name).heads
]


def in_turn(params: list[Any], **choices: Sequence[Any]) -> pytest.MarkDecorator:
    """Every member with every choice; not slow is one choice for each, another for the next."""
    ((what, values),) = choices.items()
    cases = [
        pytest.param(
            *each.values,
            value,
            marks=each.marks if j == i % len(values) else (pytest.mark.slow,),
        )
        for i, each in enumerate(params)
        for j, value in enumerate(values)
    ]
    return pytest.mark.parametrize(("name", "head", what), cases)


def members(*, apart: bool = True) -> list[Any]:
    """Parameters (name, head) of tests that take a second or more.

    Every member runs with one head, and every head with one member; the rest is slow.
    apart: without it, every family runs with one head, and not every member.
    """
    found, seen = [], set()
    family = {entry.name: entry.family for entry in catalogue()}
    for name, head in MEMBERS:
        aspects = {("head", head), ("member", name) if apart else ("family", family[name])}
        marks = () if aspects - seen else (pytest.mark.slow,)
        found.append(pytest.param(name, head, marks=marks))
        seen |= aspects
    return found
