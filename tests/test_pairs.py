"""Fewer cases lose no pair."""

from __future__ import annotations

import itertools

from pairs import covering


def test_any_two_choices_meet_in_few_cases() -> None:
    sizes = (2, 3, 5, 2, 4)
    found = covering([range(n) for n in sizes])
    assert len(found) <= 24  # of 240, and 20 is the least that there can be
    for a, b in itertools.combinations(range(len(sizes)), 2):
        met = {(case[a], case[b]) for case in found}
        assert met == set(itertools.product(range(sizes[a]), range(sizes[b])))
