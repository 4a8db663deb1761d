"""Files for something new, each one a small example that works: what `multiway new` writes.

In a checkout of multiway they go where its registries look, with the documents and tests that a
change of that kind needs. Elsewhere they are files of the user's own: see docs/your_own_files.md.
"""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from multiway.compiler.graph.registry import registry
from multiway.compiler.heads import kinds
from multiway.specs.data_folders import CONFIG, WIRINGS, wiring_files
from multiway.specs.errors import MultiwayError, nearest, one_of
from multiway.zoo import catalogue

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


@dataclass(kw_only=True)
class Plan:
    """What is to be written: whole files, and files with a part put in; and what to do then."""

    files: dict[Path, str] = field(default_factory=dict)
    changed: dict[Path, str] = field(default_factory=dict)
    then: list[str] = field(default_factory=list)


def plan(kind: str, name: str, root: Path) -> Plan:
    """What makes a NAME of a kind in a folder. Raises MultiwayError; writes nothing."""
    _check_name(kind, name)
    made = KINDS[kind].plan(name, root, in_checkout(root))
    for path in made.files:
        if path.exists() or path.is_symlink():
            raise MultiwayError.one(
                "file-exists",
                "this file is there already",
                place=str(path),
                expected="another name, or another folder",
            )
    return made


def in_checkout(root: Path) -> bool:
    """Whether a folder is the checkout of the multiway that runs."""
    own = root / "specs" / "wirings"
    return own.is_dir() and os.path.samefile(own, WIRINGS)


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise MultiwayError.one(
            "bad-name",
            f"{name!r} cannot be a name",
            place="NAME",
            expected="small letters, digits and _, beginning with a letter; no word of Python",
        )
    if name in KINDS[kind].known():
        raise MultiwayError.one(
            "duplicate-name",
            f"the {kind} {name!r} exists already",
            place="NAME",
            expected="a name of its own",
        )


def _text(template: str, name: str, **more: str) -> str:
    text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    title = "".join(part.capitalize() for part in name.split("_"))
    return text.format(name=name, title=title, dashed=name.replace("_", "-"), **more)


def _with(path: Path, part: str, before: str) -> str:
    """The text of a file with a part put in before the last line that begins like this."""
    text = path.read_text(encoding="utf-8")
    at = text.rfind(f"\n{before}")
    if at < 0:
        raise MultiwayError.one(
            "unreadable", f"there is no line {before!r}", place=str(path), expected="one to go by"
        )
    return f"{text[: at + 1]}{part}{text[at + 1 :]}"


WRITTEN = "python tests/docs/written.py    # fills in the tables of the documents"


def _wiring(name: str, root: Path, inside: bool) -> Plan:
    text = _text("wiring.yaml", name)
    if inside:
        page = root / "docs" / "wirings.md"
        section = _text("wiring.md", name).lstrip("\n") + "\n"
        return Plan(
            files={root / "specs" / "wirings" / f"{name}.yaml": text},
            changed={page: _with(page, section, "## ")},
            then=[WRITTEN, "make test"],
        )
    files = {root / "wirings" / f"{name}.yaml": text} | _config(root)
    return Plan(files=files, then=[f"multiway check prenorm-test --set wiring={name}"])


def _family(name: str, root: Path, inside: bool) -> Plan:
    folder = root / ("zoo" if inside else "families") / name
    names = ["spec", "sizes", "card", "weights"]
    files = {folder / f"{each}.yaml": _text(f"family/{each}.yaml", name) for each in names}
    dashed = name.replace("_", "-")
    then = [f"multiway check {dashed}-test", *(["make test"] if inside else [])]
    return Plan(files=files if inside else files | _config(root), then=then)


def _config(root: Path) -> dict[Path, str]:
    """The file that names the folder, where there is none."""
    return {} if (root / CONFIG).exists() else {root / CONFIG: 'data = ["."]\n'}


def _op(name: str, root: Path, inside: bool) -> Plan:
    text = _text("op.py", name)
    if inside:
        return Plan(files={root / "compiler" / "ops" / f"{name}.py": text}, then=["make test"])
    return Plan(files={root / f"{name}.py": text}, then=_plugin(name))


def _fusion(name: str, root: Path, inside: bool) -> Plan:
    if inside:
        pipeline = root / "compiler" / "pipeline.py"
        text = _text("fusion.py", name, imports="\n", own_pass="")
        return Plan(
            files={root / "compiler" / "fusions" / f"{name}.py": f"{text.rstrip()}\n"},
            changed={pipeline: _with(pipeline, _text("pass.py", name), "    # Last")},
            then=[WRITTEN, "make test"],
        )
    imports = "from multiway.compiler.pipeline import Pass\n\n"
    own_pass = "\n".join(line[4:] for line in _text("pass.py", name).splitlines())
    own_pass = f"\nPASS = {own_pass.rstrip(',')}"
    text = _text("fusion.py", name, imports=imports, own_pass=own_pass)
    return Plan(files={root / f"{name}.py": text}, then=_plugin(name))


def _head(name: str, root: Path, inside: bool) -> Plan:
    text = _text("head.py", name)
    if not inside:
        return Plan(files={root / f"{name}.py": text}, then=_plugin(name))
    page = root / "specs" / "LANGUAGE.md"
    return Plan(
        files={
            root / "compiler" / "heads" / f"{name}.py": text,
            root / "specs" / "examples" / f"{name}.yaml": _text("head.yaml", name),
        },
        changed={page: _with(page, _text("head.md", name), "## Building on another spec")},
        then=[WRITTEN, "make test"],
    )


def _plugin(name: str) -> list[str]:
    return [
        "put it into a package that is installed: multiway does not look at working directories",
        f"multiway check SPEC --plugin {name}",
    ]


@dataclass(frozen=True)
class _Kind:
    plan: Callable[[str, Path, bool], Plan]
    known: Callable[[], Mapping[str, object]]


KINDS = {
    "wiring": _Kind(_wiring, wiring_files),
    "op": _Kind(_op, registry),
    "fusion": _Kind(_fusion, registry),
    "head": _Kind(_head, lambda: kinds().classes),
    "family": _Kind(_family, lambda: catalogue().families),
}


def check_kind(kind: str) -> None:
    """Raises MultiwayError for a kind of which nothing can be made."""
    if kind not in KINDS:
        raise MultiwayError.one(
            "unknown-value",
            f"multiway new makes no {kind!r}",
            place="KIND",
            expected=one_of(KINDS),
            nearest=nearest(kind, KINDS),
        )
