"""Folders of a user's own data: wirings and families that stand beside those of multiway.

A data folder holds `wirings/NAME.yaml`, as specs/wirings does, and `families/NAME`, as zoo does. It
is named by `data` in the multiway.toml of the working directory, by MULTIWAY_PATH, or by the entry
points `multiway.data` of installed packages. It is only ever read: no code comes from one.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from multiway.specs.errors import MultiwayError, nearest

CONFIG = "multiway.toml"
VARIABLE = "MULTIWAY_PATH"
GROUP = "multiway.data"
OWN = "multiway"
WIRINGS = Path(__file__).parent / "wirings"


@dataclass(frozen=True)
class DataFolder:
    """A folder of data, and who named it: a file, a variable, or a distribution."""

    path: Path
    origin: str


def data_folders() -> tuple[DataFolder, ...]:
    """Every data folder but multiway's own. Raises MultiwayError for one that cannot be used."""
    found = [*_of_config(Path(CONFIG)), *_of_variable(os.environ.get(VARIABLE, ""))]
    found += _of_packages()
    return tuple({each.path: each for each in reversed(found)}.values())[::-1]


def wiring_files() -> dict[str, Path]:
    """The file of every named wiring. Raises MultiwayError where a name stands for two."""
    folders = [DataFolder(WIRINGS, OWN)]
    folders += [DataFolder(each.path / "wirings", each.origin) for each in data_folders()]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.path.glob("*.yaml")):
            refuse_twice("wiring", path.stem, path, found)
            found[path.stem] = path
    return found


def refuse_twice(what: str, name: str, place: object, known: Mapping[str, object]) -> None:
    """Raises MultiwayError for a name that stands for something already. known: name to place."""
    if name in known:
        raise MultiwayError.one(
            "duplicate-name",
            f"the {what} {name!r} exists already",
            place=str(place),
            expected="a name of its own",
            notes=(("first", str(known[name])),),
        )


def _of_config(path: Path) -> list[DataFolder]:
    """The folders of a multiway.toml, which may be a stranger's: they must be inside its own."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(str(path), f"cannot be read: {error}", "a TOML file") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _unusable(str(path), f"not TOML: {error}", 'data = ["FOLDER"]') from None
    return [_inside(path, name) for name in _names_of(path, values)]


def _names_of(path: Path, values: Mapping[str, Any]) -> list[str]:
    for key in values:
        if key != "data":
            raise MultiwayError.one(
                "unknown-key",
                f"{key!r} is not a key of {path.name}",
                place=str(path),
                expected="data",
                nearest=nearest(key, ["data"]),
            )
    names = values.get("data", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _unusable(str(path), "data is no list of texts", 'data = ["FOLDER"]')
    return names


def _inside(config: Path, name: str) -> DataFolder:
    place, folder = f"{config}: data", (config.parent / name).absolute()
    try:
        inside = folder.resolve().is_relative_to(config.parent.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a zero byte
        raise _unusable(place, f"{name!r} is no folder", "a folder beside it") from None
    if not inside:
        raise MultiwayError.one(
            "path-escapes",
            f"{name!r} leaves the folder of this file",
            place=place,
            expected=f"a folder beside it or below; others by {VARIABLE}",
        )
    _check_folder(folder, place, name)
    return DataFolder(folder, str(config))


def _of_variable(value: str) -> list[DataFolder]:
    """The folders of MULTIWAY_PATH: they hold for every working directory, so nobody else may write
    to them."""
    found = []
    for name in filter(None, value.split(os.pathsep)):
        path = Path(name)
        if not path.is_absolute():
            raise _unusable(VARIABLE, f"{name!r} is not absolute", "absolute folders")
        _check_folder(path, VARIABLE, name)
        status = path.stat()
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            raise _unusable(VARIABLE, f"{name!r} is somebody else's", "folders of your own")
        if os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why, expected = f"others may write to {name!r}", f"chmod go-w {name}"
            raise _unusable(VARIABLE, why, expected)
        found.append(DataFolder(path, VARIABLE))
    return found


def _check_folder(path: Path, place: str, name: str) -> None:
    if not path.is_dir():
        raise _unusable(place, f"{name!r} is no folder", "a folder with wirings/ or families/")


def _of_packages() -> list[DataFolder]:
    return [_of_package(each) for each in installed(GROUP)]


@functools.cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, in the order of their names."""
    return tuple(sorted(entry_points(group=group), key=lambda each: (each.name, each.value)))


def distribution_of(point: EntryPoint) -> str:
    """The name of the distribution that an entry point is of."""
    return point.dist.name if point.dist is not None else point.name


@functools.cache
def _of_package(point: EntryPoint) -> DataFolder:
    try:
        spec = importlib.util.find_spec(point.value)
    except (ImportError, ValueError, AttributeError):
        spec = None
    places: Iterable[str] = (spec.submodule_search_locations if spec else None) or ()
    for place in places:
        return DataFolder(Path(place), distribution_of(point))
    raise _unusable(
        f"entry point {GROUP}: {point.name}",
        f"{point.value!r} is no package with files",
        f"a package; or pip uninstall {distribution_of(point)}",
    )


def _unusable(place: str, message: str, expected: str) -> MultiwayError:
    return MultiwayError.one("bad-data-folder", message, place=place, expected=expected)
