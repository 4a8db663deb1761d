"""The small members of the zoo with their heads: what generic tests run over."""

from __future__ import annotations

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


def members(*, apart: bool = True) -> list[Any]:
    """Parameters (name, head) of tests that take a second or more.

    Every member runs with one head, and every head of a family with one member; the rest is slow.
    apart: members of a family that have another wiring count as another family.
    """
    found, seen = [], set()
    family = {entry.name: entry.family for entry in catalogue()}
    for name, head in MEMBERS:
        kin = (family[name], mw.load(name).wiring.use if apart else "")
        aspects = {(kin, head), *([("member", name)] if apart else [])}
        marks = () if aspects - seen else (pytest.mark.slow,)
        found.append(pytest.param(name, head, marks=marks))
        seen |= aspects
    return found
