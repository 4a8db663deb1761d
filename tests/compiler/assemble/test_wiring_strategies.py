"""Random wirings hold every key of the section, every choice of it and every wiring with a file."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from wiring_strategies import wirings

from multiway.specs.data_folders import wiring_files
from multiway.specs.language.fields import Config, keys_of, kinds_in, unwrap
from multiway.specs.language.parts import Activation, Initial
from multiway.specs.language.wiring import Wiring

Found = tuple[str, str, Any]

# Sums of projected values have no norm.
IMPOSSIBLE = {("SumNorm", "streams", "value")}


def configs_in(annotation: Any) -> list[type[Config]]:
    """The classes of mappings that a key may hold, also in a list."""
    inner, _ = unwrap(annotation)
    kinds = kinds_in(inner)
    if kinds is not None:
        return list(kinds.classes.values())
    if typing.get_origin(inner) is tuple:
        return configs_in(typing.get_args(inner)[0])
    return [inner] if isinstance(inner, type) and issubclass(inner, Config) else []


def choices_of(annotation: Any) -> list[Any]:
    """Words that a key may hold, alone or in a list; of a flag true and false.

    Functions are not told apart: they are the same everywhere.
    """
    inner, _ = unwrap(annotation)
    if inner is Activation:
        return []
    if typing.get_origin(inner) is tuple:
        return choices_of(typing.get_args(inner)[0])
    if typing.get_origin(inner) is typing.Literal:
        return list(typing.get_args(inner))
    return [True, False] if inner is bool else []


def expected(cls: type[Config]) -> Iterator[Found]:
    """Every key below a class with each of its choices, or None for a key without."""
    for name, (annotation, _) in keys_of(cls).items():
        for choice in choices_of(annotation) or [None]:
            yield cls.__name__, name, choice
        for inner in configs_in(annotation):
            if inner is not Initial:  # has tests of its own
                yield from expected(inner)


def drawn_in(value: Any, cls: type[Config]) -> Iterator[Found]:
    """The same of one wiring."""
    if isinstance(value, str):
        value = {cls.short: value}
    for name, given_value in value.items() if isinstance(value, dict) else ():
        annotation, _ = keys_of(cls)[name]
        several = given_value if isinstance(given_value, list) else [given_value]
        for each in several if choices_of(annotation) else [None]:
            yield cls.__name__, name, each
        for each in several:
            for inner in configs_in(annotation):
                kind = each.get("kind") if isinstance(each, dict) else None
                if inner is not Initial and kind in (None, *choices_of_kind(inner)):
                    yield from drawn_in(each, inner)


def choices_of_kind(cls: type[Config]) -> list[Any]:
    keys = keys_of(cls)
    return choices_of(keys["kind"][0]) if "kind" in keys else []


NAMED: set[Found] = {("named", name, None) for name in sorted(wiring_files())}
WANTED = set(expected(Wiring)) - IMPOSSIBLE


@pytest.mark.slow
def test_every_key_is_drawn_with_every_choice_and_every_wiring_with_a_file() -> None:
    """No more are drawn once everything was."""
    found: set[Found] = set()

    def hold_everything(wiring: Any) -> bool:
        found.update(drawn_in(wiring, Wiring))
        found.add(("named", wiring if isinstance(wiring, str) else wiring.get("use"), None))
        return found >= WANTED | NAMED

    many = hypothesis.settings(
        max_examples=8000,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    strategy = st.integers(1, 4).flatmap(lambda d: wirings(width=12, depth=d, values=True))
    with contextlib.suppress(hypothesis.errors.NoSuchExample):  # what is missing is said below
        hypothesis.find(strategy, hold_everything, settings=many)
    missing = sorted((WANTED | NAMED) - found, key=str)
    assert not missing, f"tests/wiring_strategies.py never draws {missing}"
