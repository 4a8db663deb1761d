"""What the tests of the runtime share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from multiway.runtime.kernels import native

# Tests are no package: what they share is found here.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["c", "plain"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test of mixes, or of attention over depth, with their C kernels and without."""
    yield from _both_ways(request.param, "mix", "depth_attention")


@pytest.fixture(params=["c", "plain"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test of heads or norms with their C kernels and without."""
    yield from _both_ways(request.param, "rotate_heads", "norms")


def _both_ways(way: str, *libraries: str) -> Iterator[str]:
    if way == "plain":
        with native.disabled():
            yield way
        return
    for each in libraries:
        if native.library(each) is None:
            pytest.skip(f"no C kernel: {native.refused(each)}")
    yield way
