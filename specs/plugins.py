"""Code of a user's own: modules with ops, heads, fusions, passes and kernels.

A plugin is a module, or a package of modules, each with some of OP, HEAD, FUSION and PASS, as the
files of compiler/ops, compiler/heads and compiler/fusions have them. KERNELS may stand in a module
`kernels` of the package, which is imported with the first program that runs.

It is named by an entry point `multiway.plugins` of an installed package, by `--plugin`, or by
`multiway.use_plugin`; never by a spec, and never found in the working directory.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from multiway.specs.data_folders import distribution_of, installed
from multiway.specs.errors import MultiwayError

GROUP = "multiway.plugins"
PARTS = ("OP", "HEAD", "FUSION", "PASS", "KERNELS")
_LATER = "kernels"  # the module that may import torch
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_used: dict[str, tuple[ModuleType, ...]] = {}  # by name, in the order in which they came
_installed: dict[str, tuple[ModuleType, ...]] | None = None

T = TypeVar("T")


def use(plugin: str | ModuleType) -> None:
    """Imports a plugin, whose parts the registries have from then on. Raises MultiwayError.

    plugin: the name of an installed module, or a module.
    """
    name = plugin if isinstance(plugin, str) else plugin.__name__
    if name not in plugins():
        place = f"plugin {name}"
        module = _imported(name, place) if isinstance(plugin, str) else plugin
        _used[name] = _with_parts(module, place)


def forget(name: str) -> None:
    """Takes back what `use` did."""
    _used.pop(name, None)


def plugins() -> tuple[str, ...]:
    """The names of all plugins, those of installed packages first. Raises MultiwayError."""
    return (*_of_packages(), *_used)


def modules() -> tuple[ModuleType, ...]:
    """The modules of all plugins, in that order. A registry keeps what it found for these."""
    if not _used and not _of_packages():
        return ()
    return tuple(
        each for found in (_of_packages(), _used) for one in found.values() for each in one
    )


def parts(name: str, kind: type[T]) -> list[T]:
    """What the modules of plugins have under one of PARTS. Raises MultiwayError for another thing
    of that name."""
    found = []
    for module in (*modules(), *(_kernel_modules() if name == "KERNELS" else ())):
        for part in _listed(getattr(module, name, ())):
            if not isinstance(part, kind):
                raise _bad(
                    f"plugin {module.__name__}",
                    f"{name} is a {type(part).__name__}",
                    f"{name} = {kind.__name__}(...)",
                )
            found.append(part)
    return found


def _kernel_modules() -> list[ModuleType]:
    """The modules that were not imported with their plugins."""
    return [
        _imported(f"{module.__name__}.{_LATER}", f"plugin {module.__name__}")
        for module in modules()
        if _LATER in _within(module)
    ]


def _within(module: ModuleType) -> list[str]:
    """The names of the modules in a package."""
    return sorted(each.name for each in pkgutil.iter_modules(getattr(module, "__path__", ())))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _of_packages() -> dict[str, tuple[ModuleType, ...]]:
    global _installed
    if _installed is None:
        found = {}
        for point in installed(GROUP):
            place = f"entry point {GROUP}: {point.name} of {distribution_of(point)}"
            found[point.value] = _with_parts(_imported(point.value, place), place)
        _installed = found
    return _installed


def _with_parts(module: ModuleType, place: str) -> tuple[ModuleType, ...]:
    """The module and those in it, as far as they have parts."""
    inner = [name for name in _within(module) if name != _LATER]
    found = [module, *(_imported(f"{module.__name__}.{name}", place) for name in inner)]
    if not any(hasattr(each, name) for each in found for name in PARTS):
        raise _bad(place, "this module adds nothing", f"a module with {', '.join(PARTS)}")
    return tuple(found)


def _imported(name: str, place: str) -> ModuleType:
    if not _MODULE.fullmatch(name):
        raise _bad(place, "this is no name of a module", "such as my_package.ops")
    try:
        with _without_working_directory():
            return importlib.import_module(name)
    except MultiwayError:
        raise
    except Exception as error:  # a plugin may fail in any way
        missing = isinstance(error, ModuleNotFoundError) and name.startswith(error.name or " ")
        message = "there is no such module" if missing else f"{type(error).__name__}: {error}"
        expected = "an installed module; files of the working directory are not looked at"
        raise _bad(place, message, expected if missing else "a module that imports") from error


@contextmanager
def _without_working_directory() -> Iterator[None]:
    """Python itself puts it in front, and a folder that one works in may be anybody's. Where an
    installed package stands in it, it is named once more further behind."""
    before = list(sys.path)
    here = {"", ".", os.getcwd()}
    sys.path[:] = [each for i, each in enumerate(before) if each and (i or each not in here)]
    try:
        yield
    finally:
        sys.path[:] = before


def _bad(place: str, message: str, expected: str) -> MultiwayError:
    return MultiwayError.one("bad-plugin", message, place=place, expected=expected)
