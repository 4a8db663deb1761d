"""What the documents hold, and what their tables and printed output should be.

`python tests/docs/written.py` writes both again, after a change of the language or of a printer.

A block behind a comment is written (`keys: CLASS`, `printed: WHAT`) or quoted (`from: FILE`).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
import shutil
import tempfile
import textwrap
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from results import cases, cases_table, recorded, results_table

import multiway as mw
from multiway.cards import limits
from multiway.compiler.analysis.costs import costs, default_sizes, moved_bytes, total
from multiway.compiler.assemble.build import MAX_PARAMETERS, program_names
from multiway.compiler.graph.layer_graph import INPUT, LayerGraph, block_of
from multiway.compiler.heads import contrastive, kinds
from multiway.compiler.pipeline import PIPELINE, Options, run
from multiway.compiler.views.report import report
from multiway.compiler.views.report import to_text as report_text
from multiway.compiler.views.text import line, to_text
from multiway.specs import language
from multiway.specs.data_folders import WIRINGS
from multiway.specs.language import fields, routing
from multiway.specs.language.parts import ACTIVATIONS, Activation
from multiway.specs.reading import dims, merge
from multiway.specs.spec import Spec
from multiway.specs.text import expressions, source
from multiway.specs.text.source import parse

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "specs" / "examples"
RESULTS = ROOT / "benchmarks" / "results"
LANGUAGE = ROOT / "specs" / "LANGUAGE.md"
DOCS = [LANGUAGE, *sorted((ROOT / "docs").glob("*.md"))]
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


# Key tables


def classes() -> dict[str, type[fields.Config]]:
    """Every mapping of the language, by the name of its table."""
    names = [module.name for module in pkgutil.iter_modules(language.__path__)]
    modules = [importlib.import_module(f"{language.__name__}.{name}") for name in names]
    found = {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, fields.Config)
        and value not in (fields.Config, routing.Chosen)
    }
    return {**found, "Project": contrastive.Project, **kinds().classes}


def own_keys(cls: type[fields.Config]) -> dict[str, tuple[object, str]]:
    """The keys of a mapping that no mapping it builds on has, except `kind`."""
    bases = [base for base in classes().values() if base is not cls and issubclass(cls, base)]
    inherited = {key for base in bases for key in fields.keys_of(base)}
    return {k: v for k, v in fields.keys_of(cls).items() if k not in inherited}


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
    fields.Count: "count",
    fields.Offset: "count or 0",
    fields.Real: "number",
    fields.Test: "test",
    fields.Formula: "formula",
    str: "text",
    bool: "true, false",
    Activation: ", ".join(ACTIVATIONS),
}


def holds(annotation: object) -> str:
    """What a key holds, in words."""
    annotation, _ = fields.unwrap(annotation)
    if (found := fields.kinds_in(annotation)) is not None:
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


def hint(cls: type[fields.Config], key: str) -> object:
    return fields.unwrap(fields.keys_of(cls)[key][0])[0]


def default(cls: type[fields.Config], key: str) -> str:
    """The default of a key; `-` where there is none and it may be left out."""
    if key in cls.required or (key in fields.TAGS and len(typing.get_args(hint(cls, key))) == 1):
        return "required"
    field = cls.__dataclass_fields__[key]
    value = field.default if field.default is not MISSING else None
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ((), ""):
        return "-"
    if isinstance(value, tuple):
        shown = [f"{each:g}" if isinstance(each, float) else str(each) for each in value]
        return f"[{', '.join(shown)}]"
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
    makers: dict[str, Callable[..., str]] = {
        "graph": print_graph,
        "code": print_code,
        "block": print_block,
        "fused": print_fused,
        "passes": print_passes,
        "report": print_report,
        "results": print_results,
        "cases": print_cases,
        "programs": print_programs,
        "parameters": print_parameters,
        "error": print_error,
        "expressions": print_expressions,
        "traps": print_traps,
        "limits": print_limits,
        "wiring": print_wiring,
        "routing": print_routing,
    }
    return folded_lines(makers[name](file, *words))


def folded_lines(text: str) -> str:
    """The text with its long lines broken at spaces."""
    lines = []
    for each in text.rstrip("\n").split("\n"):
        indent = " " * (len(each) - len(each.lstrip()) + 4)
        lines += textwrap.wrap(
            each,
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
    from multiway.compiler.views.python import readable
    from multiway.runtime.block import calls_of

    module = mw.compile(spec_of(file), fuse=False).programs[program]
    return readable(dict(calls_of(module))[block] if block else module)


def print_block(file: Path, name: str, head: str, block: str, stage: str) -> str:
    """The lines of a block of a zoo entry's main program after a pass, with its share of nodes."""
    stages = {s.name: s for s in run(mw.build(name, head=head), Options())}
    graph = stages[stage].graph
    found = [record for record in graph if block_of(record.path) == block]
    lines = [line(graph, record).replace(f"{block}.", "") for record in found]
    return "\n".join([f"# {name}, {block}, {stage}: {len(found)} nodes", *lines])


def print_fused(file: Path, name: str, head: str, block: str) -> str:
    """The code of a block of a zoo entry's main program, as it runs."""
    from multiway.compiler.views.python import readable
    from multiway.runtime.block import calls_of

    model = mw.compile(name, head=head, device="meta")
    return readable(dict(calls_of(next(iter(model.programs.values()))))[block])


def print_passes(file: Path) -> str:
    """The pipeline: name, numerics, what it does."""
    rows = [(p.name, p.numerics + (f", {p.only}" if p.only else ""), p.does) for p in PIPELINE]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


def print_report(file: Path, name: str, head: str) -> str:
    """The report on a zoo entry's main program, without its times."""
    spec = mw.load(name).for_head(head)
    found = report(run(mw.build(spec), Options()), limits=limits(spec))
    for each in found["passes"]:
        each["ms"] = ""
    return re.sub(r" +ms$| +$", "", report_text(found), flags=re.MULTILINE)


def print_results(file: Path) -> str:
    """The recorded results of the benchmark cases, beside those of an earlier commit if any are."""
    targets = {case.name: case.target for case in cases()}
    return results_table(recorded(RESULTS), recorded(RESULTS / "before"), targets)


def print_cases(file: Path) -> str:
    """What every benchmark case compares."""
    return cases_table()


WIRED = ROOT / "benchmarks" / "specs" / "prenorm-24x256.yaml"
WIRED_DIMS = {"depth": 12, "width": 768, "num_heads": 12}
WIRED_SIZES = {"B": 1, "T": 512}


def print_wiring(file: Path, name: str) -> str:
    """The keys of a named wiring as they stand in its file, and what it adds to plain residual."""
    text = (WIRINGS / f"{name}.yaml").read_text()
    keys = [each for each in text.splitlines() if not re.match(r"#|doc:|cite:", each)]
    own, plain = wiring_costs(name), wiring_costs("residual")
    more = {key: own[key] / plain[key] - 1 for key in plain}
    costs = (
        f"# parameters {own['parameters'] - plain['parameters']:+,} "
        f"({more['parameters']:+.2%}), FLOPs {more['flops']:+.2%}, "
        f"nodes {own['nodes'] - plain['nodes']:+d}, fused {own['fused'] - plain['fused']:+d}, "
        f"bytes {more['bytes']:+.1%}"
    )
    return "\n".join([*(keys or ["# nothing"]), *([] if name == "residual" else [costs])])


@functools.cache
def wiring_costs(name: str) -> dict[str, float]:
    spec = mw.load(WIRED, set={**WIRED_DIMS, "wiring.use": name}).for_head("lm")
    built = mw.build(spec)
    fused = run(built, Options())[-1].graph
    whole = total(costs(built, WIRED_SIZES))
    return {
        "parameters": whole.parameters,
        "flops": whole.flops,
        "nodes": len(built),
        "fused": len(fused),
        "bytes": moved_bytes(fused, WIRED_SIZES),
    }


ROUTED_DIMS = {
    **{"depth": 12, "width": 768, "num_heads": 12, "num_kv_heads": 12, "context": 512},
    **{"image": 224, "patch": 16},
}


def print_routing(file: Path, *heading: str) -> str:
    """What the change of an example that stands under a heading costs, beside that example without
    any experts: 12 layers x 768, texts of 512 tokens or what the example allows, one row."""
    title = f"## {' '.join(heading)}"
    start = file.read_text().split("\n").index(title) + 1
    block = next(b for b in blocks(file) if b.line > start and b.words.startswith("extends="))
    base = block.words.removeprefix("extends=")
    dense = without_experts(mw.load(EXAMPLES / base).tree.plain())
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(EXAMPLES / base, folder)
        changed = Path(folder, "changed.yaml")
        changed.write_text(f"multiway: 1\nextends: {base}\n{block.text}")
        own, plain = routing_costs(changed), routing_costs(dense)
    parameters, active = (
        f"{word} {own[key] / 1e6:.1f}M ({own[key] / plain[key]:.2f} of dense)"
        for word, key in (("parameters", "parameters"), ("active", "active"))
    )
    flops, moved = (own[key] / plain[key] - 1 for key in ("flops", "bytes"))
    return f"# {parameters}, {active}, FLOPs {flops:+.1%}, bytes {moved:+.0%}"


def without_experts(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_experts(each) for key, each in tree.items() if key != "experts"}
    return tree


def routing_costs(source: Any) -> dict[str, float]:
    dims = mw.load(source).dims
    spec = mw.load(source, set={k: v for k, v in ROUTED_DIMS.items() if k in dims})
    spec = spec.for_head(next(iter(spec.heads)))
    built = mw.build(spec)
    sizes = default_sizes(built, limits(spec), batch=1, length=None)
    whole = total(costs(built, sizes))
    return {
        "parameters": whole.parameters,
        "active": whole.active,
        "flops": whole.flops,
        "bytes": moved_bytes(run(built, Options())[-1].graph, sizes),
    }


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
    try:
        load_text(block.text)
    except mw.MultiwayError as error:
        return error.render()
    raise AssertionError(f"{block} is not wrong")


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


_TRAPS = ("12", "'12'", "1e-5", "010", "0x10", "1_000", "1:30", ".inf", "no", "true", "True", "~")


def print_traps(file: Path) -> str:
    """What some scalars mean where a number is wanted, and where true or false is."""
    rows = [("written", "as a number", "as true or false")]
    for text in _TRAPS:
        number = _value_of(f"dims: {{x: {text}, ", "dims: {", lambda spec: f"{spec.dims['x']:g}")
        switch = _value_of(
            f"tie: {text}}}", "tie: true}", lambda spec: str(spec.head.node["tie"].value).lower()
        )
        rows.append((text, number, switch))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


def _value_of(written: str, instead_of: str, value: Callable[[Any], str]) -> str:
    text = (EXAMPLES / "decoder.yaml").read_text()
    assert instead_of in text
    try:
        return value(load_text(text.replace(instead_of, written)).for_head("lm"))
    except mw.MultiwayError as error:
        return f"error[{error.problems[0].code}]"
    except KeyError:
        return "left out"


def print_limits(file: Path) -> str:
    limits = {
        "bytes of a file": source.MAX_BYTES,
        "levels of nesting in YAML": source.MAX_DEPTH,
        "values, with aliases written out and parents merged": source.MAX_NODES,
        "characters of an expression": expressions.MAX_LENGTH,
        "numbers, names and signs of an expression": expressions.MAX_TOKENS,
        "levels of nesting in an expression": expressions.MAX_NESTING,
        "specs that extend one another": merge.MAX_CHAIN,
        "blocks": dims.MAX_BLOCKS,
        "any count": int(fields.MAX_COUNT),
        "parameters": MAX_PARAMETERS,
    }
    width = max(map(len, limits))
    return "\n".join(f"{what:<{width}}  {most:>17,}" for what, most in limits.items())


def current(block: Block) -> str:
    """What a written block should hold."""
    kind, _, what = block.marker.partition(": ")
    return key_table(what) if kind == "keys" else printed(what, block.file)


def rewrite() -> None:
    for file in DOCS:
        text = file.read_text()
        for block in blocks(file):
            if block.marker.startswith(("keys:", "printed:")):
                fence = f"<!-- {block.marker} -->\n```{block.language}\n"
                text = text.replace(fence + block.text, fence + current(block))
        file.write_text(text)


if __name__ == "__main__":
    rewrite()
