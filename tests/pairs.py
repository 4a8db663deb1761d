"""Pairs instead of products: cases in which any two choices of different parameters meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def pairs(*, indirect: Sequence[str] = (), **choices: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrises a test by few of the combinations of these choices, the same in each run."""
    values = [list(each) for each in choices.values()]
    cases = [[some[i] for some, i in zip(values, case, strict=True)] for case in covering(values)]
    return pytest.mark.parametrize(list(choices), cases, indirect=list(indirect))


def covering(values: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
    """Indices into the choices: greedily whatever meets most pairs that have not met."""
    places = list(itertools.combinations(range(len(values)), 2))
    every = list(itertools.product(*(range(len(each)) for each in values)))

    def met(case: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(a, b, case[a], case[b]) for a, b in places}

    left = set().union(*(met(case) for case in every))
    found = []
    while left:
        best = max(every, key=lambda case: len(met(case) & left))
        found.append(best)
        left -= met(best)
    return found
