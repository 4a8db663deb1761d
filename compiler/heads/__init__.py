"""One file a head kind. See docs/adding_a_head.md."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from multiway.specs.language.fields import Kinds


@functools.cache
def kinds() -> Kinds:
    """Every head kind, in the order of the file names."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"multiway.compiler.heads.{name}") for name in names]
    return Kinds(*(module.HEAD for module in modules))
