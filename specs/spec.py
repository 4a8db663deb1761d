"""A spec: read, merged, checked, and turned into typed values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from multiway.specs.checks.spec import check
from multiway.specs.errors import MultiwayError, Problem, Report, nearest, one_of, quote
from multiway.specs.language.document import (
    RESERVED,
    Block,
    Document,
    Embed,
    Head,
    Input,
    Learned,
    Output,
)
from multiway.specs.language.fields import (
    MAX_COUNT,
    Count,
    Kinds,
    Names,
    Reader,
    Test,
    keys_of,
    number_at,
    parse_expression,
)
from multiway.specs.language.parts import Initial
from multiway.specs.language.wiring import Wiring
from multiway.specs.reading.merge import (
    Resolver,
    apply_sets,
    extend,
    merge,
    strip,
    with_defaults,
    with_likes,
    with_wiring,
)
from multiway.specs.reading.schema import check_schema
from multiway.specs.text.expressions import FUNCTIONS, WORDS, Expr
from multiway.specs.text.source import Node, parse, read_file

MAX_DEPTH = 4096  # blocks of a model


@dataclass(frozen=True, kw_only=True, eq=False)
class Spec:
    """A checked spec. Values are those of one head when `head_name` is set, else of no head."""

    name: str
    tree: Node = field(repr=False)
    dims: Mapping[str, float]
    inputs: Mapping[str, Input]
    embed: Mapping[str, Embed]
    blocks: tuple[Block, ...] = field(repr=False)
    wiring: Wiring
    output: Output
    heads: Mapping[str, Head]
    init: Mapping[str, Initial]
    kinds: Kinds = field(repr=False)
    origin: str = ""  # the zoo entry that it is, or extends
    head_name: str = ""
    made: dict[str, Spec] = field(default_factory=dict, init=False, repr=False)  # by for_head

    @property
    def depth(self) -> int:
        return int(self.dims["depth"])

    @property
    def width(self) -> int:
        return int(self.dims["width"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Every modality, in the order in which the inputs name them."""
        return tuple(dict.fromkeys(each.modality for each in self.inputs.values()))

    @property
    def head(self) -> Head:
        return self.heads[self.head_name]

    def for_head(self, name: str | None = None) -> Spec:
        """The spec as one head has it: its dims, its output norm. None: the only head.

        Raises MultiwayError when there is no such head, or when several could be meant.
        """
        name = self.pick(name)
        if name not in self.made:
            self.made[name] = self._for_head(name)
        return self.made[name]

    def pick(self, name: str | None) -> str:
        """The name of the head that is meant."""
        if name is None and len(self.heads) == 1:
            return next(iter(self.heads))
        if name is None or name not in self.heads:
            what = f"{self.name} has no head {name!r}" if name else f"{self.name} has several heads"
            raise MultiwayError.one(
                "unknown-head",
                what,
                place=self.name,
                expected=one_of(self.heads),
                nearest=nearest(name or "", self.heads),
            )
        return name

    def _for_head(self, name: str) -> Spec:
        head = self.heads[name]
        if not head.dims and head.output_norm:
            return dataclasses.replace(self, head_name=name)
        tree = self.tree
        if head.dims:
            dims = {dim: formula.node for dim, formula in head.dims.items()}
            tree = merge(tree, Node({"dims": Node(dims, head.node.span)}, head.node.span))
        if not head.output_norm:
            output = Node({"norm": Node(None, head.span("output_norm"))}, head.node.span)
            tree = strip(merge(tree, Node({"output": output}, head.node.span)))
        changed = _convert(tree, self.kinds)
        return dataclasses.replace(changed, head_name=name, origin=self.origin)

    def learned_rows(self, modality: str) -> int:
        """Rows of the learned position table of a modality, its offset included."""
        position = self.embed[modality].position
        assert isinstance(position, Learned)
        if position.rows is not None:
            return position.rows
        longest = max(self.tokens_of(name) or 0 for name in self.inputs_of(modality))
        return longest + position.offset

    def inputs_of(self, modality: str) -> tuple[str, ...]:
        return tuple(n for n, each in self.inputs.items() if each.modality == modality)

    def tokens_of(self, name: str) -> int | None:
        """Tokens that an input becomes: exact for an image, the most for others, None: no limit."""
        each = self.inputs[name]
        embed = self.embed.get(each.modality)
        if each.form() == "image":
            assert each.size is not None and embed is not None and embed.patch is not None
            return (each.size // embed.patch.size) ** 2 + (1 if embed.cls else 0)
        position = embed.position if embed else None
        if each.context is not None or position is None or position.rows is None:
            return each.context
        return position.rows - position.offset

    def text(self) -> str:
        """The merged spec as YAML: what a compiled model was made from."""
        plain = {"multiway": 1, **self.tree.plain()}
        plain.pop("extends", None)
        return yaml.safe_dump(plain, sort_keys=False, width=100)


def load(
    source: str | Path | Mapping[str, Any] | Node,
    *,
    set: Mapping[str, Any] | None = None,
    resolver: Resolver,
    kinds: Kinds,
) -> Spec:
    """Reads, merges and checks a spec. Raises MultiwayError with every problem found.

    `source` is a name that the resolver knows, a path, a mapping, or a parsed document.
    """
    document, folder = _document(source, resolver)
    tree = apply_sets(extend(document, resolver, heads=kinds, folder=folder), set or {}, kinds)
    tree = strip(with_wiring(with_defaults(with_likes(tree))))
    report = Report()
    check_schema(tree, kinds, report)
    report.raise_if_any()
    spec = dataclasses.replace(_convert(tree, kinds), origin=_origin(source, document, resolver))
    for name in spec.heads:
        for problem in _problems(spec, name):
            report.keep(problem)
    report.raise_if_any()
    return spec


def _problems(spec: Spec, head: str) -> list[Problem]:
    """What is wrong with a spec as one head has it; says which, where the head has dims."""
    report = Report()
    try:
        check(spec.for_head(head), report)
    except MultiwayError as error:
        report.extend(error)
    if not spec.heads[head].dims:
        return report.problems
    note = ("head", f"{head}, which has dims of its own")
    return [dataclasses.replace(each, notes=(*each.notes, note)) for each in report.problems]


def _origin(source: object, document: Node, resolver: Resolver) -> str:
    """The name that a spec is known by, or else the one that it extends."""
    if isinstance(source, str) and resolver(source) is not None:
        return source
    parent = document.get("extends")
    if parent is not None and parent.value is not None:
        return str(parent.value)
    return source if isinstance(source, str) else str(document["name"].value)


def _document(
    source: str | Path | Mapping[str, Any] | Node, resolver: Resolver
) -> tuple[Node, Path | None]:
    if isinstance(source, Node):
        return source, None
    if isinstance(source, Mapping):
        return parse(_as_yaml(source), file="<mapping>"), None
    named = resolver(source) if isinstance(source, str) else None
    if named is not None:
        return named, None
    path = Path(source)
    if isinstance(source, str) and not _looks_like_path(path, source):
        names = getattr(resolver, "names", ())
        raise MultiwayError.one(
            "unknown-spec",
            "there is neither a zoo entry nor a file of this name",
            place=source if source.isprintable() and len(source) < 100 else quote(source),
            expected="a name that `multiway zoo` lists, a path, or - for standard input",
            nearest=nearest(source, names),
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
    dims = _dims(tree["dims"], report)
    report.raise_if_any()
    reader = Reader(dims, report)
    spec = Spec(
        name=str(tree["name"].value),
        tree=tree,
        dims=dims,
        inputs=_each(Input, tree, "inputs", reader),
        embed=_each(Embed, tree, "embed", reader),
        blocks=_blocks(tree, dims, report),
        wiring=_one(Wiring, tree, "wiring", reader),
        output=_one(Output, tree, "output", reader),
        heads={
            name: reader.kinds(kinds, node, f"heads.{name}")
            for name, node in tree["heads"].value.items()
        },
        init=_each(Initial, tree, "init", reader),
        kinds=kinds,
    )
    report.raise_if_any()
    _check_head_dims(spec, report)
    report.raise_if_any()
    return spec


def _one(cls: type[Any], tree: Node, name: str, reader: Reader) -> Any:
    return reader.config(cls, tree.get(name) or Node({}, tree.span), name)


def _each(cls: type[Any], tree: Node, name: str, reader: Reader) -> dict[str, Any]:
    node = tree.get(name)
    children = node.value.items() if node is not None else ()
    return {each: reader.config(cls, child, f"{name}.{each}") for each, child in children}


def _check_head_dims(spec: Spec, report: Report) -> None:
    for name, head in spec.heads.items():
        for dim in head.dims:
            if dim not in spec.dims:
                report.add(
                    "unknown-dim",
                    f"heads.{name} changes {dim!r}, which is not a dim of this spec",
                    span=head.node["dims"].key_span(dim),
                    expected=one_of(spec.dims),
                    nearest=nearest(dim, spec.dims),
                )


def _blocks(tree: Node, dims: Mapping[str, float], report: Report) -> tuple[Block, ...]:
    """One Block a layer; layers that no expression tells apart share one object."""
    overrides = tree.get("layers")
    _check_overrides(overrides, report)
    blocks: list[Block] = []
    for layer in range(int(dims["depth"])):
        names, found = Names({**dims, "layer": layer}), Report()
        node = tree["block"]
        for override in overrides.value if overrides else ():
            node = _overridden(node, override, names, found)
        block = Reader(names, found).config(Block, node, "block")
        told_apart = bool(overrides) or names.read_layer
        if block is None or found.problems:
            # One layer is enough: the others are wrong in the same way.
            note = (("layer", str(layer)),) if told_apart else ()
            for problem in found.problems:
                report.keep(dataclasses.replace(problem, notes=(*problem.notes, *note)))
            return ()
        if not told_apart:
            return (block,) * int(dims["depth"])
        blocks.append(block)
    return tuple(blocks)


def _check_overrides(overrides: Node | None, report: Report) -> None:
    for override in overrides.value if overrides else ():
        if override.get("where") is None:
            report.add(
                "missing-key",
                "a change of layers needs 'where'",
                span=override.span,
                expected="where: a test, e.g. layer >= depth - 3",
            )


def _overridden(node: Node, override: Node, names: Names, report: Report) -> Node:
    where = override.get("where")
    if where is None or not Reader(names, report).guarded(Test, where, "where"):
        return node
    change = {name: child for name, child in override.value.items() if name != "where"}
    return strip(merge(node, dataclasses.replace(override, value=change)))


def _dims(node: Node, report: Report) -> dict[str, float]:
    """The values of all dims, which may be written in any order."""
    values: dict[str, float] = {}
    trees = {name: _dim_expression(name, node, report) for name in node.value}
    reads = {
        name: {other for other in sorted(tree.names()) if other in node.value} if tree else set()
        for name, tree in trees.items()
    }
    known = dict.fromkeys(node.value, 0.0)
    for name in _in_order(reads, node):
        tree, unread = trees[name], any(other not in values for other in reads[name])
        if tree is None or unread or report.full:
            continue  # said already, of this dim or of one that it reads
        del known[name]
        try:
            values[name] = number_at(tree, node[name], known)
        except MultiwayError as error:
            report.extend(error)
        known[name] = values.get(name, 0.0)
    _check_basic_dims(node, values, report)
    return values


def _dim_expression(name: str, node: Node, report: Report) -> Expr | None:
    if name in RESERVED or name in FUNCTIONS or name in WORDS:
        message = f"a dim cannot be called {name!r}, which has a meaning of its own"
        report.add("bad-name", message, span=node.key_span(name), expected="another name")
    try:
        return parse_expression(node[name])
    except MultiwayError as error:
        report.extend(error)
        return None


def _in_order(reads: Mapping[str, Set[str]], node: Node) -> list[str]:
    """Names behind those that they read. Raises MultiwayError where they go in a circle."""
    try:
        return list(TopologicalSorter(reads).static_order())
    except CycleError as error:
        circle = error.args[1][::-1]
        start = circle.index(next(name for name in reads if name in circle))
        names = [*circle[start:-1], *circle[:start], circle[start]]
        raise MultiwayError.one(
            "cyclic-dims",
            f"these dims go in a circle: {' -> '.join(names)}",
            span=node[names[0]].span,
            expected="a number somewhere on the way",
        ) from None


def _check_basic_dims(node: Node, values: Mapping[str, float], report: Report) -> None:
    for name, most in (("depth", MAX_DEPTH), ("width", int(MAX_COUNT))):
        if name not in node.value:
            message = f"dims needs {name!r}"
            report.add("missing-key", message, span=node.span, expected=f"{name}: 12, for instance")
        if name not in values:
            continue
        count = Reader(values, report).guarded(Count, node[name], name)
        if count is not None and count > most:
            message, expected = f"this is {count:,} blocks", f"at most {most:,}"
            report.add("absurd-size", message, span=node[name].span, expected=expected)
