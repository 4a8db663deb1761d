"""A spec: read, merged, checked, and turned into typed values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multiway.specs import checks
from multiway.specs.config import (
    MAX_COUNT,
    Count,
    Kinds,
    Names,
    Reader,
    Test,
    evaluate_at,
    parse_expression,
)
from multiway.specs.errors import MultiwayError, Report, nearest, one_of
from multiway.specs.expressions import FUNCTIONS
from multiway.specs.language import (
    RESERVED,
    Block,
    Embed,
    Head,
    Initial,
    Input,
    Learned,
    Output,
    Wiring,
)
from multiway.specs.merge import (
    Resolver,
    apply_sets,
    extend,
    merge,
    with_defaults,
    with_likes,
    with_wiring,
)
from multiway.specs.schema import check_schema
from multiway.specs.source import Node, parse, read_file

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
        return self._for_head(self.pick(name))

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

    @functools.cache  # noqa: B019 - specs are few and live as long as the program
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
            tree = merge(tree, Node({"output": output}, head.node.span))
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
    set: Mapping[str, Any] | None = None,  # noqa: A002 - the word users know from the command line
    resolver: Resolver,
    kinds: Kinds,
) -> Spec:
    """Reads, merges and checks a spec. Raises MultiwayError with every problem found.

    `source` is a name that the resolver knows, a path, a mapping, or a parsed document.
    """
    document, folder = _document(source, resolver)
    tree = with_defaults(extend(document, resolver, folder=folder))
    tree = with_wiring(with_likes(apply_sets(tree, set or {})))
    report = Report()
    check_schema(tree, kinds, report)
    report.raise_if_any()
    spec = dataclasses.replace(_convert(tree, kinds), origin=_origin(source, document))
    for name in spec.heads:
        try:
            checks.check(spec.for_head(name), report)
        except MultiwayError as error:
            report.extend(error)
    report.raise_if_any()
    return spec


def _origin(source: object, document: Node) -> str:
    """The name that a spec is known by, or else the one that it extends."""
    parent = document.get("extends")
    if isinstance(source, str) and parent is None:
        return source
    return str(parent.value) if parent is not None else str(document["name"].value)


def _document(
    source: str | Path | Mapping[str, Any] | Node, resolver: Resolver
) -> tuple[Node, Path | None]:
    if isinstance(source, Node):
        return source, None
    if isinstance(source, Mapping):
        return parse(yaml.safe_dump(dict(source), sort_keys=False), file="<mapping>"), None
    named = resolver(source) if isinstance(source, str) else None
    if named is not None:
        return named, None
    path = Path(source)
    looks_like_path = path.suffix in (".yaml", ".yml") or "/" in str(source) or path.exists()
    if isinstance(source, str) and not looks_like_path:
        names = getattr(resolver, "names", ())
        raise MultiwayError.one(
            "unknown-spec",
            "there is neither a zoo entry nor a file of this name",
            place=source,
            expected="a name that `multiway zoo` lists, a path, or - for standard input",
            nearest=nearest(source, names),
        )
    return read_file(path), path.parent


def _convert(tree: Node, kinds: Kinds) -> Spec:
    report = Report()
    for name in ("multiway", "name", "dims", "inputs", "block", "heads"):
        if tree.get(name) is None:
            report.add(
                "missing-key",
                f"a spec needs {name!r}",
                span=tree.span,
                expected=f"{name}: ...",
            )
    report.raise_if_any()
    dims = _dims(tree["dims"], report)
    report.raise_if_any()
    reader = Reader(dims, report)
    spec = Spec(
        name=str(tree["name"].value),
        tree=tree,
        dims=dims,
        inputs=_each(Input, tree["inputs"], reader),
        embed=_each(Embed, tree.get("embed"), reader),
        blocks=_blocks(tree, dims, report),
        wiring=_one(Wiring, tree["wiring"], reader),
        output=_one(Output, tree.get("output") or Node({}, tree.span), reader),
        heads={name: reader.kinds(kinds, node) for name, node in tree["heads"].value.items()},
        init=_each(Initial, tree.get("init"), reader),
        kinds=kinds,
    )
    report.raise_if_any()
    return spec


def _one(cls: type[Any], node: Node, reader: Reader) -> Any:
    return reader.config(cls, node)


def _each(cls: type[Any], node: Node | None, reader: Reader) -> dict[str, Any]:
    if node is None:
        return {}
    return {name: reader.config(cls, child) for name, child in node.value.items()}


def _blocks(tree: Node, dims: Mapping[str, float], report: Report) -> tuple[Block, ...]:
    """One Block a layer; layers that no expression tells apart share one object."""
    overrides = tree.get("layers")
    blocks: list[Block] = []
    for layer in range(int(dims["depth"])):
        names = Names({**dims, "layer": layer})
        node = tree["block"]
        for override in overrides.value if overrides else ():
            node = _overridden(node, override, names, report)
        block = Reader(names, report).config(Block, node)
        if block is None or report.problems:
            report.raise_if_any()
        assert block is not None
        if not overrides and not names.read_layer:
            return (block,) * int(dims["depth"])
        blocks.append(block)
    return tuple(blocks)


def _overridden(node: Node, override: Node, names: Names, report: Report) -> Node:
    where = override.get("where")
    reader = Reader(names, report)
    if where is None:
        report.add(
            "missing-key", "a change of layers needs 'where'", span=override.span,
            expected="where: a test, e.g. layer >= depth - 3",
        )  # fmt: skip
        return node
    if not reader.guarded(Test, where):
        return node
    change = {name: child for name, child in override.value.items() if name != "where"}
    return merge(node, Node(change, override.span, override.keys, override.size))


def _dims(node: Node, report: Report) -> dict[str, float]:
    values: dict[str, float] = {}

    def value(name: str, chain: tuple[str, ...]) -> float:
        if name in values:
            return values[name]
        if name in chain:
            raise MultiwayError.one(
                "cyclic-dims", f"{' -> '.join([*chain, name])} go in a circle", span=node[name].span
            )
        expr = parse_expression(node[name])
        known = {n: 0.0 for n in node.value}
        for other in sorted(expr.names()):
            if other in node.value:
                known[other] = value(other, (*chain, name))
        values[name] = evaluate_at(expr, node[name], known)
        return values[name]

    for name in node.value:
        if name in RESERVED or name in FUNCTIONS:
            report.add("bad-name", f"{name!r} has a meaning of its own", span=node.key_span(name))
        try:
            value(name, ())
        except MultiwayError as error:
            report.extend(error)
    _check_basic_dims(node, values, report)
    return values


def _check_basic_dims(node: Node, values: Mapping[str, float], report: Report) -> None:
    for name, most in (("depth", MAX_DEPTH), ("width", int(MAX_COUNT))):
        if name not in node.value:
            report.add(
                "missing-key", f"dims needs {name!r}", span=node.span, expected=f"{name}: 12"
            )
            continue
        try:
            count = Reader(values, report).leaf(Count, node[name])
        except MultiwayError as error:
            report.extend(error)
            continue
        if count > most:
            expected = f"at most {most:,}"
            report.add("absurd-size", f"{name} {count}", span=node[name].span, expected=expected)
