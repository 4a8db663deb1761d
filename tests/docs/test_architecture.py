"""docs/architecture.md names every file of the tree, and no other."""

from __future__ import annotations

import re

import pytest
from written import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
# With or without backticks: the picture has none. A path ends before the full stop of a sentence.
PATH = r"\b(?:specs|compiler|runtime|zoo|multiway)/[\w./-]*\w"
NAMED = set(re.findall(PATH, PAGE))
# Folders of files of one kind, which say by themselves what they are.
FOLDERS = (
    "compiler/ops",
    "compiler/fusions",
    "compiler/heads",
    "compiler/passes",
    "multiway/commands",
)
FAMILIES = ROOT / "runtime" / "kernels"


def modules() -> list[str]:
    """Every module that the page must name itself, not by its folder."""
    found = []
    for top in ("specs", "compiler", "runtime", "zoo", "multiway"):
        for path in (ROOT / top).rglob("*.py"):  # links in multiway/ are not followed
            name = path.relative_to(ROOT).as_posix()
            of_family = FAMILIES in path.parent.parents
            if path.name != "__init__.py" and not of_family and not name.startswith(FOLDERS):
                found.append(name)
    return sorted(found)


def families() -> list[str]:
    return sorted(path.parent.relative_to(ROOT).as_posix() for path in FAMILIES.glob("*/*.py"))


@pytest.mark.parametrize("path", sorted(NAMED))
def test_what_the_page_names_exists(path: str) -> None:
    assert (ROOT / path).exists(), f"docs/architecture.md names {path}"


@pytest.mark.parametrize("path", [*modules(), *FOLDERS, *sorted(set(families()))])
def test_the_page_names_it(path: str) -> None:
    assert path in NAMED, f"docs/architecture.md does not name {path}"


def test_files_that_are_named_without_a_folder_exist() -> None:
    """In a row of the table that names their folder."""
    for folder, rest in re.findall(rf"^\| `({PATH})` \|(.*)$", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+\.py)`", rest):
            assert (ROOT / folder / name).exists(), f"docs/architecture.md names {name} of {folder}"


def test_the_page_opens_with_the_way_from_yaml_to_a_model() -> None:
    picture = PAGE.split("```")[1]
    assert PAGE.index("```") < PAGE.index("\n## ")
    steps = (
        "specs/load.py",
        "specs/text/source.py",
        "specs/reading/merge.py",
        "compiler/compile.py",
        "compiler/assemble/build.py",
        "compiler/graph/layer_graph.py",
        "compiler/pipeline.py",
        "compiler/lowering/lower.py",
        "runtime/model.py",
    )
    first = [match[0] for line in picture.split("\n") if (match := re.search(PATH, line))]
    waiting = iter(first)
    assert all(step in waiting for step in steps), "the picture is not in this order"
