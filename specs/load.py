"""From text to a Spec: read, merged, checked, converted; and a Spec as each head has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from multiway.specs.checks.spec import check, check_head_dims
from multiway.specs.connections import Connections
from multiway.specs.errors import MultiwayError, Report, nearest, quote
from multiway.specs.language.document import Document, Output
from multiway.specs.language.fields import Kinds, keys_of
from multiway.specs.language.inputs import Embed, Input
from multiway.specs.language.parts import Initial
from multiway.specs.language.wiring import Wiring
from multiway.specs.library import Library
from multiway.specs.reading.convert import Reader, blocks_of
from multiway.specs.reading.dims import values_of_dims
from multiway.specs.reading.merge import (
    apply_sets,
    extend,
    merge,
    strip,
    wiring_file,
    with_defaults,
    with_likes,
    with_wiring,
)
from multiway.specs.reading.schema import check_schema
from multiway.specs.spec import Spec
from multiway.specs.text.source import Node, parse, read_file


def load(
    source: str | Path | Mapping[str, Any] | Node,
    *,
    set: Mapping[str, Any] | None = None,
    library: Library,
) -> Spec:
    """Reads, merges and checks a spec. Raises MultiwayError with every problem found.

    `source` is a name that the library knows, a path, a mapping, or a parsed document.
    """
    document, folder = _document(source, library)
    kinds = library.heads
    tree = apply_sets(extend(document, library, folder=folder), set or {}, kinds)
    tree = strip(with_wiring(with_defaults(with_likes(tree)), library.wirings))
    report = Report()
    check_schema(tree, library, report)
    report.raise_if_any()
    by_head: dict[str, Spec] = {}
    spec = dataclasses.replace(
        _convert(tree, kinds),
        origin=_origin(source, document, library),
        wiring_file=_wiring_file(tree, library),
        by_head=by_head,
    )
    for name in spec.heads:
        _add_head(spec, name, by_head, report)
    report.raise_if_any()
    return dataclasses.replace(spec, warnings=tuple(report.warnings))


def _wiring_file(tree: Node, library: Library) -> str:
    use = tree["wiring"].get("use")
    return str(wiring_file(use, library.wirings)) if use is not None else ""


def _add_head(spec: Spec, name: str, by_head: dict[str, Spec], report: Report) -> None:
    """Adds a spec as one head has it. What is wrong with it; says which, where it has dims."""
    found = Report()
    try:
        by_head[name] = _for_head(spec, name)
        check(by_head[name], found)
    except MultiwayError as error:
        found.extend(error)
    notes = [("head", f"{name}, which has dims of its own")] if spec.heads[name].dims else []
    for problem in found.problems:
        report.keep(dataclasses.replace(problem, notes=(*problem.notes, *notes)))
    for problem in found.warnings:
        report.warn(**{**vars(problem), "notes": (*problem.notes, *notes)})


def _for_head(spec: Spec, name: str) -> Spec:
    """The spec with the dims and the output norm of one head."""
    head = spec.heads[name]
    if not head.dims and head.output_norm:
        return dataclasses.replace(spec, head_name=name)
    tree = spec.tree
    if head.dims:
        dims = {dim: formula.node for dim, formula in head.dims.items()}
        tree = merge(tree, Node({"dims": Node(dims, head.node.span)}, head.node.span))
    if not head.output_norm:
        output = Node({"norm": Node(None, head.span("output_norm"))}, head.node.span)
        tree = strip(merge(tree, Node({"output": output}, head.node.span)))
    converted = _convert(tree, spec.kinds)
    return dataclasses.replace(
        converted,
        head_name=name,
        origin=spec.origin,
        wiring_file=spec.wiring_file,
        by_head=spec.by_head,
    )


def _origin(source: object, document: Node, library: Library) -> str:
    """The name that a spec is known by, or else the one that it extends."""
    if isinstance(source, str) and library.specs(source) is not None:
        return source
    parent = document.get("extends")
    if parent is not None and parent.value is not None:
        return str(parent.value)
    return source if isinstance(source, str) else str(document["name"].value)


def _document(
    source: str | Path | Mapping[str, Any] | Node, library: Library
) -> tuple[Node, Path | None]:
    if isinstance(source, Node):
        return source, None
    if isinstance(source, Mapping):
        return parse(_as_yaml(source), file="<mapping>"), None
    named = library.specs(source) if isinstance(source, str) else None
    if named is not None:
        return named, None
    path = Path(source)
    if isinstance(source, str) and not _looks_like_path(path, source):
        raise MultiwayError.one(
            "unknown-spec",
            "there is neither a zoo entry nor a file of this name",
            place=source if source.isprintable() and len(source) < 100 else quote(source),
            expected="a name that `multiway zoo` lists, a path, or - for standard input",
            nearest=nearest(source, library.specs.names),
        )
    return read_file(path), path.parent


def _looks_like_path(path: Path, source: str) -> bool:
    if path.suffix in (".yaml", ".yml") or "/" in source:
        return True
    try:
        return path.exists()
    except OSError:  # too long to be a file
        return False


def _as_yaml(source: Mapping[str, Any]) -> str:
    """A mapping as text, so that errors can show the line. Raises MultiwayError."""
    try:
        return yaml.safe_dump(dict(source), sort_keys=False)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MultiwayError.one(
            "wrong-type",
            f"this mapping holds what YAML cannot: {reason}",
            place="<mapping>",
            expected="plain data: numbers, texts, true, false, None, lists and dicts of them",
        ) from None


def _convert(tree: Node, kinds: Kinds) -> Spec:
    report = Report()
    for name in Document.required:
        if (part := tree.get(name)) is None or part.value == {}:
            report.add(
                "missing-key",
                f"a spec needs {name!r}",
                place=tree.span.file,
                expected=f"{name}: {keys_of(Document)[name][1]}",
            )
    report.raise_if_any()
    dims = values_of_dims(tree["dims"], report)
    report.raise_if_any()
    reader = Reader(dims, report)
    inputs = _each(Input, tree, "inputs", reader)  # problems come in this order
    embed = _each(Embed, tree, "embed", reader)
    blocks = blocks_of(tree, dims, report)
    wiring = _one(Wiring, tree, "wiring", reader)
    output = _one(Output, tree, "output", reader)
    given = tree["heads"].value.items()
    heads = {name: reader.kinds(kinds, node, f"heads.{name}") for name, node in given}
    init = _each(Initial, tree, "init", reader)
    report.raise_if_any()
    spec = Spec(
        name=str(tree["name"].value),
        tree=tree,
        dims=dims,
        inputs=inputs,
        embed=embed,
        blocks=blocks,
        wiring=wiring,
        output=output,
        heads=heads,
        init=init,
        connections=Connections(blocks, wiring),
        kinds=kinds,
    )
    check_head_dims(spec, report)
    report.raise_if_any()
    return spec


def _one(cls: type[Any], tree: Node, name: str, reader: Reader) -> Any:
    return reader.config(cls, tree.get(name) or Node({}, tree.span), name)


def _each(cls: type[Any], tree: Node, name: str, reader: Reader) -> dict[str, Any]:
    node = tree.get(name)
    children = node.value.items() if node is not None else ()
    return {each: reader.config(cls, child, f"{name}.{each}") for each, child in children}
