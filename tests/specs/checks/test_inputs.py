"""Names of inputs beside the places of parameters."""

from __future__ import annotations

import pytest

import multiway as mw
from multiway.specs.checks.spec import CONTAINERS
from multiway.zoo import catalogue

MEMBERS = [name for name in catalogue().names if name.endswith("-test")]


@pytest.mark.parametrize("name", MEMBERS)
def test_parameters_stand_in_the_containers(name: str) -> None:
    spec = mw.load(name)
    for head in spec.heads:
        paths = mw.build(spec, head=head).params
        assert {path.partition(".")[0] for path in paths} <= set(CONTAINERS)
