"""The documentation is true: its specs build, its tables and printed output are current."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from written import ALL, DOCS, EXAMPLES, LANGUAGE, ROOT, Block, classes, current, own_keys

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.registry import registry
from multiway.specs.data_folders import wiring_files
from multiway.specs.language import fields
from multiway.specs.spec import Spec

SPECS = [block for block in ALL if block.language == "yaml" and not block.marker]
WRITTEN = [block for block in ALL if block.marker.startswith(("keys:", "printed:"))]
QUOTED = [block for block in ALL if block.marker.startswith("from:")]
OWN = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
REWRITE = "stale: run `python tests/docs/written.py`"


@pytest.mark.parametrize("name", list(classes()))
def test_every_mapping_has_a_key_table(name: str) -> None:
    tables = [b for b in WRITTEN if b.file == LANGUAGE and b.marker == f"keys: {name}"]
    assert len(tables) == 1 or not own_keys(classes()[name]), f"LANGUAGE.md has no table of {name}"


def test_every_key_occurs_in_a_key_table() -> None:
    text = "".join(b.text for b in WRITTEN if b.marker.startswith("keys:"))
    keys = {key for cls in classes().values() for key in fields.keys_of(cls)}
    assert not {key for key in keys if not re.search(rf"^{key}\b", text, re.MULTILINE)}


@pytest.mark.parametrize("block", WRITTEN, ids=str)
def test_written_block_is_current(block: Block) -> None:
    assert block.text == current(block), REWRITE


def build_all(spec: Spec) -> int:
    """Builds every program of every head and says how many there are."""
    count = 0
    for head in spec.heads:
        for program in program_names(spec.for_head(head)):
            mw.build(spec, head=head, program=program)
            count += 1
    return count


@pytest.mark.parametrize("block", SPECS, ids=str)
def test_spec_in_a_document_builds(block: Block, tmp_path: Path) -> None:
    """A block is a whole spec, or says what it changes: ```yaml extends=decoder.yaml."""
    path = tmp_path / "spec.yaml"
    if re.search(r"^multiway: 1$", block.text, re.MULTILINE):
        shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
        path.write_text(block.text)
    else:
        base = block.words.removeprefix("extends=")
        assert base, f"{block} is no whole spec and names none"
        shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
        path.write_text(f"multiway: 1\nextends: {base}\n{block.text}")
    assert build_all(mw.load(path)) >= 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
class TestExample:
    def test_says_what_it_shows(self, path: Path) -> None:
        assert path.read_text().startswith("# Shows ")

    def test_loads_and_builds(self, path: Path) -> None:
        assert build_all(mw.load(path)) >= 1

    def test_runs(self, path: Path) -> None:
        import torch

        from multiway.runtime.tasks.random_inputs import random_inputs

        spec = mw.load(path)
        for head in spec.heads:
            model = mw.compile(spec, head=head)
            assert sum(p.numel() for p in model.parameters()) < 1_000_000
            main = next(iter(model.programs))
            result = model(**random_inputs(model, main))
            first = result[0] if isinstance(result, tuple) else result
            assert torch.isfinite(first).all(), f"{head}.{main}"


def squeezed(code: str) -> str:
    """Code without what a formatter may change."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


@pytest.mark.parametrize("block", QUOTED, ids=str)
def test_quoted_code_stands_in_its_file(block: Block) -> None:
    file = ROOT / block.marker.removeprefix("from: ")
    assert squeezed(block.text).rstrip(",") in squeezed(file.read_text()), f"{file} has changed"


def test_every_letter_of_a_signature_is_explained() -> None:
    rows = re.findall(r"^\| ([A-Z]) \|", (ROOT / "docs" / "shapes.md").read_text(), re.MULTILINE)
    for op in registry().values():
        slots = (*op.parsed.inputs, *op.parsed.outputs)
        letters = set("".join(term for slot in slots for term in (*slot.dims, slot.mark)))
        assert not {c for c in letters if c.isalpha()} - set(rows), f"docs/shapes.md, {op.name}"


_FILE = re.compile(r"`((?:specs|compiler|runtime|zoo|multiway|tests|docs)/[\w./-]*)`")


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in _FILE.findall(path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")


def documents() -> list[Path]:
    """Every Markdown file of the repository, once."""
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if path.resolve() == path
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


def anchors(path: Path) -> set[str]:
    """The anchors that headings get on a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in _LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    long = [i for i, line in enumerate(path.read_text().split("\n"), 1) if len(line) > 110]
    assert not long, f"lines over 110 columns: {long}"


def test_every_wiring_has_a_section() -> None:
    text = (ROOT / "docs" / "wirings.md").read_text()
    printed = re.findall(r"<!-- printed: wiring (\w+) -->", text)
    assert sorted(printed) == sorted(wiring_files())
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == len(printed) + 2  # edges, compositions
