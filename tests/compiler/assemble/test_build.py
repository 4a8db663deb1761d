"""What a spec declares, apart from its programs."""

from __future__ import annotations

import gc
import weakref

import multiway as mw
from multiway.compiler.assemble.build import parameters


def test_what_was_declared_is_kept_with_its_spec_and_goes_with_it() -> None:
    spec = mw.load("mudd-pythia-test").for_head("lm")
    declared = parameters(spec)
    assert parameters(spec) is declared
    mw.build(spec)
    kept = weakref.ref(spec)
    del spec
    gc.collect()
    assert kept() is None
