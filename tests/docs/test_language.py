"""The documentation is true: its specs build, its tables and its printed output are current.

`python tests/docs/test_language.py` writes the key tables and the printed output again.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest

import multiway as mw
from multiway.compiler.build import program_names
from multiway.compiler.graph import INPUT, LayerGraph
from multiway.compiler.heads import contrastive, kinds
from multiway.compiler.printing import to_text
from multiway.specs import config, expressions, language
from multiway.specs.source import parse, scalar
from multiway.specs.spec import Spec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "specs" / "examples"
LANGUAGE = ROOT / "specs" / "LANGUAGE.md"
DOCS = [LANGUAGE, *sorted((ROOT / "docs").glob("*.md"))]
OWN = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
REWRITE = "stale: run `python tests/docs/test_language.py`"
WIDTH = 108


# What the documents hold


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words behind it, the comment in front of it."""

    file: Path
    line: int
    language: str
    words: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.stem}:{self.line}"


_BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>[^\n]*) -->\n)?```(?P<language>\w+)(?P<words>[^\n]*)\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(file: Path) -> Iterator[Block]:
    text = file.read_text()
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        words, marker = match["words"].strip(), match["marker"] or ""
        yield Block(file, line, match["language"], words, marker, match["text"])


ALL = [block for file in DOCS for block in blocks(file)]
SPECS = [block for block in ALL if block.language == "yaml" and not block.marker]
WRITTEN = [block for block in ALL if block.marker.startswith(("keys:", "printed:"))]
QUOTED = [block for block in ALL if block.marker.startswith("from:")]


# Key tables


def classes() -> dict[str, type[config.Config]]:
    """Every mapping of the language, by the name of its table."""
    found = {
        name: value
        for name, value in vars(language).items()
        if isinstance(value, type)
        and issubclass(value, config.Config)
        and value is not config.Config
    }
    return {**found, "Project": contrastive.Project, **kinds().classes}


def own_keys(cls: type[config.Config]) -> dict[str, tuple[object, str]]:
    """The keys of a mapping that no mapping it builds on has, except `kind`."""
    bases = [base for base in classes().values() if base is not cls and issubclass(cls, base)]
    inherited = {key for base in bases for key in config.keys_of(base)}
    return {k: v for k, v in config.keys_of(cls).items() if k not in inherited}


def key_table(name: str) -> str:
    """One line a key: its name, what it holds, its default, its meaning."""
    cls = classes()[name]
    rows = [
        (key, holds(annotation), default(cls, key), meaning)
        for key, (annotation, meaning) in own_keys(cls).items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    widths[1] = min(widths[1], 34)
    start = sum(widths) + 6
    lines: list[str] = []
    for key, value, given, meaning in rows:
        values = textwrap.wrap(value, widths[1])
        meanings = textwrap.wrap(meaning, WIDTH - start, break_on_hyphens=False)
        for i in range(max(len(values), len(meanings))):
            cells = [key, values[i] if i < len(values) else "", given]
            cells = cells if i == 0 else ["", cells[1], ""]
            cells.append(meanings[i] if i < len(meanings) else "")
            padded = [cell.ljust(width) for cell, width in zip(cells, [*widths, 0], strict=True)]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


_LEAVES = {
    config.Count: "count",
    config.Offset: "count or 0",
    config.Real: "number",
    config.Test: "test",
    config.Formula: "formula",
    str: "text",
    bool: "true, false",
}


def holds(annotation: object) -> str:
    """What a key holds, in words."""
    annotation, _ = config.unwrap(annotation)
    if (found := config.kinds_in(annotation)) is not None:
        return " or ".join(cls.__name__ for cls in found.classes.values())
    if annotation in _LEAVES:
        return _LEAVES[annotation]
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {holds(arguments[0])}"
    if origin is dict:
        return f"names to {holds(arguments[1])}"
    if origin is not None:
        return " or ".join(dict.fromkeys(holds(each) for each in arguments))
    assert isinstance(annotation, type)
    return annotation.__name__


def hint(cls: type[config.Config], key: str) -> object:
    return config.unwrap(config.keys_of(cls)[key][0])[0]


def default(cls: type[config.Config], key: str) -> str:
    """The default of a key; `-` where there is none and it may be left out."""
    if key in cls.required or key == "kind" and len(typing.get_args(hint(cls, key))) == 1:
        return "required"
    field = cls.__dataclass_fields__[key]
    value = field.default if field.default is not MISSING else None
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ((), ""):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Printed output


def spec_of(file: Path) -> Spec:
    """The first whole spec that a document shows."""
    block = next(b for b in blocks(file) if b.language == "yaml" and "multiway: 1" in b.text)
    return load_text(block.text)


def load_text(text: str) -> Spec:
    return mw.load(parse(text, file="my.yaml"))


def printed(what: str, file: Path) -> str:
    """What stands in a block marked `printed: WHAT`."""
    name, *words = what.split()
    makers = {
        "graph": print_graph,
        "code": print_code,
        "programs": print_programs,
        "parameters": print_parameters,
        "error": print_error,
        "expressions": print_expressions,
        "traps": print_traps,
    }
    return folded_lines(makers[name](file, *words))


def folded_lines(text: str) -> str:
    """The text with its long lines broken at spaces."""
    lines = []
    for line in text.rstrip("\n").split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        lines += textwrap.wrap(
            line,
            WIDTH,
            subsequent_indent=indent,
            drop_whitespace=True,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines) + "\n"


def print_graph(file: Path, program: str) -> str:
    return to_text(mw.build(spec_of(file), program=program))


def print_code(file: Path, program: str, block: str = "") -> str:
    from multiway.compiler.listing import readable

    return readable(mw.compile(spec_of(file)).programs[program].get_submodule(block).code)


def print_programs(file: Path, example: str, head: str) -> str:
    """`name(inputs) -> outputs`, with their types, for every program of a head."""
    spec = mw.load(EXAMPLES / f"{example}.yaml")
    names = program_names(spec.for_head(head))
    return "\n".join(program_line(mw.build(spec, head=head, program=name)) for name in names)


def program_line(graph: LayerGraph) -> str:
    inputs = []
    for record in graph:
        if record.op == INPUT:
            types = [str(kind) for kind in record.outputs]
            more = f"{types[0]}, {types[1]}, ..." if len(types) > 1 else types[0]
            inputs.append(f"{record.path.partition('.')[2]} {more}")
    outputs = []
    for name, given in graph.arguments(graph.output().path).items():
        if isinstance(given, list):
            outputs.append(name)
        else:
            outputs.append(f"{name.replace('metrics_', 'metrics.')} {graph.type(given)}")
    return f"{graph.name}({', '.join(inputs)}) -> {', '.join(outputs)}"


def print_parameters(file: Path, example: str, head: str, *prefixes: str) -> str:
    spec = mw.load(EXAMPLES / f"{example}.yaml")
    params = mw.build(spec, head=head).params.values()
    shown = [p for p in params if p.path.startswith(prefixes or ("",))]
    width = max(len(param.path) for param in shown)
    return "\n".join(f"{p.path:<{width}}  {list(p.shape)}" for p in shown)


def print_error(file: Path) -> str:
    """The error of the first block that is marked `wrong`."""
    block = next(block for block in blocks(file) if block.marker == "wrong")
    with pytest.raises(mw.MultiwayError) as caught:
        load_text(block.text)
    return caught.value.render()


_EXPRESSIONS = (
    "7 / 2",
    "7 // 2",
    "-7 // 2",
    "-7 % 4",
    "round_to(10, 4)",
    "round_to(14, 4)",
    "round_up(10, 4)",
    "floor(8 * 40 / 3)",
    "max(1, 2, 3)",
    "1 / sqrt(16)",
    "log(1 / 0.07)",
    "64 if 2 < 3 and not 1 > 2 else 32",
    "0.1 + 0.2",
)


def print_expressions(file: Path) -> str:
    width = max(map(len, _EXPRESSIONS))
    values = [expressions.evaluate(expressions.parse(text), {}) for text in _EXPRESSIONS]
    return "\n".join(
        f"{text:<{width}}  {value!r}" for text, value in zip(_EXPRESSIONS, values, strict=True)
    )


_TRAPS = (
    "12", "'12'", "1e-5", "010", "0x10", "1_000", "1:30", ".inf", "no", "true", "True", "~",
)  # fmt: skip


def print_traps(file: Path) -> str:
    """What some scalars mean where a number is wanted, and where true or false is."""
    rows = [("written", "as a number", "as true or false")]
    for text in _TRAPS:
        number, switch = (_value_of(key, text) for key in ("dims.x", "heads.lm.tie"))
        rows.append((text, number, switch))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


def _value_of(key: str, text: str) -> str:
    if scalar(text) is None:
        return "left out"
    try:
        spec = mw.load(EXAMPLES / "decoder.yaml", set={key: text})
    except mw.MultiwayError as error:
        return f"error[{error.problems[0].code}]"
    if key == "dims.x":
        return f"{spec.dims['x']:g}"
    return str(spec.heads["lm"].tie).lower()  # type: ignore[attr-defined]


def current(block: Block) -> str:
    """What a written block should hold."""
    kind, _, what = block.marker.partition(": ")
    return key_table(what) if kind == "keys" else printed(what, block.file)


def rewrite() -> None:
    for file in DOCS:
        text = file.read_text()
        for block in blocks(file):
            if block in WRITTEN:
                fence = f"<!-- {block.marker} -->\n```{block.language}\n"
                text = text.replace(fence + block.text, fence + current(block))
        file.write_text(text)


# Tests


@pytest.mark.parametrize("name", list(classes()))
def test_every_mapping_has_a_key_table(name: str) -> None:
    tables = [b for b in WRITTEN if b.file == LANGUAGE and b.marker == f"keys: {name}"]
    assert len(tables) == 1 or not own_keys(classes()[name]), f"LANGUAGE.md has no table of {name}"


def test_every_key_occurs_in_a_key_table() -> None:
    text = "".join(b.text for b in WRITTEN if b.marker.startswith("keys:"))
    keys = {key for cls in classes().values() for key in config.keys_of(cls)}
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

        from multiway.runtime.samples import random_inputs

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
    source = ROOT / block.marker.removeprefix("from: ")
    assert squeezed(block.text) in squeezed(source.read_text()), f"{source} has changed"


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


if __name__ == "__main__":
    sys.exit(rewrite())
