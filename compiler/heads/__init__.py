"""One file a head kind. See docs/adding_a_head.md."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from multiway.specs import plugins
from multiway.specs.data_folders import refuse_twice
from multiway.specs.language.fields import Config, Kinds, kind_of


def kinds() -> Kinds:
    """Every head kind, in the order of the file names; those of plugins come last."""
    return _kinds(plugins.modules())


@functools.cache
def _kinds(_: tuple[ModuleType, ...]) -> Kinds:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"multiway.compiler.heads.{name}") for name in names]
    heads = [module.HEAD for module in modules]
    for head in plugins.parts("HEAD", type):
        refuse_twice("head kind", kind_of(head), f"plugin {head.__module__}", _homes(heads))
        heads.append(head)
    return Kinds(*heads)


def _homes(heads: Sequence[type[Config]]) -> dict[str, str]:
    return {kind_of(head): head.__module__ for head in heads}
