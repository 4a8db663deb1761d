"""How specs build on one another: `extends`, named wirings, `--set`, per-layer changes.

Mappings merge key by key, lists replace, `~` deletes, and a changed `kind:`, `route:` or `use:`
replaces its whole mapping, because the keys of one kind mean nothing to another.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiway.specs.errors import MultiwayError, Span, nearest, one_of, quote
from multiway.specs.language.document import Document
from multiway.specs.language.fields import TAGS, Kinds, keys_of
from multiway.specs.language.wiring import Wiring
from multiway.specs.library import Library
from multiway.specs.reading.full_form import full_document, full_form
from multiway.specs.text.source import MAX_DEPTH, MAX_NODES, Node, parse_value, read_file

MAX_CHAIN = 16  # documents that extend one another, heads that are like one another
DEFAULTS = Path(__file__).parents[1] / "defaults.yaml"


def strip(node: Node) -> Node:
    """The node without the keys whose value is `~`."""
    if not isinstance(node.value, dict):
        return node
    kept = {name: strip(child) for name, child in node.value.items() if child.value is not None}
    return dataclasses.replace(node, value=kept)


def merge(base: Node, change: Node) -> Node:
    """`base` with `change` laid over it. Both are in their full form.

    A `~` stays, so that it still deletes what a named wiring or a `like` lays under it later;
    `strip` takes it out when all is merged.
    """
    if not (isinstance(base.value, dict) and isinstance(change.value, dict)):
        return change
    if any(_differs(base, change, name) for name in (*TAGS, "use")):
        return change
    values = dict(base.value)
    for name, child in change.value.items():
        values[name] = merge(values[name], child) if name in values else child
    # The place of a mapping that both sides wrote is where it was written first.
    return Node(values, base.span, {**base.keys, **change.keys}, base.size + change.size)


def _differs(base: Node, change: Node, name: str) -> bool:
    old, new = base.get(name), change.get(name)
    if new is None or not isinstance(new.value, str) or not base.value:
        return False
    return old is None or old.value != new.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Extending:
    """What is known while a document is extended: where it stands, and what led to it."""

    library: Library
    folder: Path | None
    chain: tuple[str, ...] = ()
    files: frozenset[Path] = frozenset()

    def within(self, name: str, folder: Path | None, file: Path | None) -> _Extending:
        return dataclasses.replace(
            self,
            folder=folder,
            chain=(*self.chain, name),
            files=self.files | {file} if file else self.files,
        )


def extend(document: Node, library: Library, *, folder: Path | None = None) -> Node:
    """The document with everything it extends merged in, in its full form. Raises MultiwayError."""
    return _extend(document, _Extending(library=library, folder=folder))


def _extend(document: Node, where: _Extending) -> Node:
    document = _with_wiring_path(full_document(document, where.library.heads), where.folder)
    parent = document.get("extends")
    if parent is None or parent.value is None:
        return document
    if not isinstance(parent.value, str):
        raise MultiwayError.one(
            "wrong-type",
            f"extends is {parent.kind()}",
            span=parent.span,
            expected="the name of a spec, or a .yaml file beside this one",
        )
    base, inner = _find(parent.value, parent.span, where)
    merged = merge(_extend(base, inner), document)
    if merged.size > MAX_NODES:
        message = f"more than {MAX_NODES:,} values once merged"
        raise MultiwayError.one("too-large", message, span=parent.span)
    return dataclasses.replace(merged, span=document.span)


def _find(name: str, span: Span, where: _Extending) -> tuple[Node, _Extending]:
    if names_file(name):
        return _file(name, span, where)
    _check_chain(name, span, where, again=name in where.chain)
    found = where.library.specs(name)
    if found is None:
        raise MultiwayError.one(
            "unknown-spec",
            f"there is no spec named {quote(name)}",
            span=span,
            expected="a name that `multiway zoo` lists, or a .yaml file beside this one",
            nearest=nearest(name, where.library.specs.names),
        )
    return found, where.within(name, None, None)


def names_file(name: str) -> bool:
    """Whether what stands for a spec or a wiring is a file, and not a name."""
    return name.endswith((".yaml", ".yml"))


def _file(name: str, span: Span, where: _Extending) -> tuple[Node, _Extending]:
    shown = _beside(name, span, where.folder, code="unknown-spec")
    path = shown.resolve()
    _check_chain(name, span, where, again=path in where.files)
    return read_file(shown), where.within(name, shown.parent, path)


def _beside(name: str, span: Span, folder: Path | None, *, code: str, of_spec: bool = True) -> Path:
    """A file named from a folder. code: of the error where there is none. of_spec: the folder is
    that of a spec, which may name what is in it or below, and not the user's, who may name any."""
    if folder is None:
        message = f"{quote(name)} is a file, but this spec is not one"
        expected = "a name that `multiway zoo` lists"
        if code == "unknown-wiring":
            expected = "the name of a wiring"
        raise MultiwayError.one(code, message, span=span, expected=expected)
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())
        found = path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, a zero byte
        inside, found = True, False
    if of_spec and not inside:
        raise MultiwayError.one(
            "path-escapes",
            f"{quote(name)} leaves the folder of this spec",
            span=span,
            expected="a file in the same folder or below",
        )
    if not found:
        base = "folder of this spec" if of_spec else "working directory"
        raise MultiwayError.one(
            code,
            f"there is no file {quote(name)}",
            span=span,
            expected=f"a file, named from the {base}",
            nearest=_like_file(folder, name),
        )
    return folder / name


def _like_file(folder: Path, name: str) -> str:
    try:
        paths = [*(folder / name).parent.glob("*.yaml"), *(folder / name).parent.glob("*.yml")]
        names = {path.name: path.relative_to(folder).as_posix() for path in paths}
    except (OSError, ValueError):  # a zero byte; not below the folder
        return ""
    return names.get(nearest(Path(name).name, names), "")


def _check_chain(name: str, span: Span, where: _Extending, *, again: bool) -> None:
    way = " -> ".join([*where.chain, name])
    if again:
        raise MultiwayError.one("cyclic-extends", f"this extends itself: {way}", span=span)
    if len(where.chain) >= MAX_CHAIN:
        message = f"more than {MAX_CHAIN} specs extend one another"
        raise MultiwayError.one("cyclic-extends", message, span=span, notes=(("way", way),))


def apply_sets(tree: Node, settings: Mapping[str, Any], heads: Kinds) -> Node:
    """The tree with `--set` values laid over it. A name without a dot is a dim, or else a part of
    the spec. A file is named from the working directory."""
    for name, value in settings.items():
        change = full_document(_setting(tree, str(name), value), heads)
        tree = merge(tree, _with_wiring_path(change, Path(), of_spec=False))
    return tree


def _setting(tree: Node, name: str, value: Any) -> Node:
    written = value if isinstance(value, str) else _as_yaml(name, value)
    text = f"{name}={written}"
    span = Span("--set", 1, 1, max(len(name), 1), text)
    parts = name.split(".") if "." in name or _is_part(tree, name) else ["dims", name]
    if len(parts) > MAX_DEPTH:
        message = f"a path of more than {MAX_DEPTH} names"
        raise MultiwayError.one("unknown-set", message, span=span)
    if parts[0] == "dims":
        place = span.part(5, len(parts[1])) if "." in name else span
        _check_dim(tree, parts[1], place)
    leaf = _leaf(written, text, len(name) + 1)
    if len(parts) == 2 and "." not in name:
        return _nest(parts, [0, 0], leaf, span)
    starts = [sum(len(part) + 1 for part in parts[:i]) for i in range(len(parts))]
    return _nest(parts, starts, leaf, span)


def _dims_of(tree: Node) -> list[str]:
    dims = tree.get("dims")
    return list(dims.value) if dims is not None and isinstance(dims.value, dict) else []


def _is_part(tree: Node, name: str) -> bool:
    """Whether a name stands for a part of the spec, as `wiring` does; extending is done by then."""
    return name in keys_of(Document) and name != "extends" and name not in _dims_of(tree)


def _check_dim(tree: Node, name: str, span: Span) -> None:
    known = _dims_of(tree)
    if name not in known:
        raise MultiwayError.one(
            "unknown-set",
            f"{quote(name)} is not a dim of this spec",
            span=span,
            expected=f"{one_of(known)}; anything else by its path, as in block.order=parallel",
            nearest=nearest(name, known),
        )


def _nest(parts: list[str], starts: list[int], leaf: Node, span: Span) -> Node:
    for part, start in zip(reversed(parts), reversed(starts), strict=True):
        key = span.part(start, len(part))
        if not part:
            raise MultiwayError.one("unknown-set", "a name is missing here", span=key)
        leaf = Node({part: leaf}, key, {part: key}, 1 + leaf.size)
    return leaf


def _leaf(written: str, text: str, shift: int) -> Node:
    node = parse_value(written, file="--set")
    span = Span("--set", 1, shift + 1, max(len(text) - shift, 1), text)
    return Node(None, span) if node is None else _at_span(node, span)


def _at_span(node: Node, span: Span) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {name: _at_span(child, span) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_at_span(child, span) for child in value]
    return dataclasses.replace(node, value=value, span=span, keys=dict.fromkeys(node.keys, span))


def _as_yaml(name: str, value: Any) -> str:
    try:
        return json.dumps(value)  # JSON is YAML
    except (TypeError, ValueError, RecursionError):
        raise MultiwayError.one(
            "wrong-type",
            f"the value of {quote(name)} is a {type(value).__name__}",
            place="--set",
            expected="plain data: numbers, texts, true, false, lists and mappings of them",
        ) from None


def with_defaults(tree: Node) -> Node:
    """The tree with what holds where a spec says nothing."""
    given = {name: child for name, child in tree.value.items() if child.value is not None}
    tree = dataclasses.replace(tree, value=given)
    return dataclasses.replace(merge(read_file(DEFAULTS), tree), span=tree.span)


def with_likes(tree: Node) -> Node:
    """The tree with every head that is `like` another merged over that one."""
    heads = tree.get("heads")
    if heads is None or not isinstance(heads.value, dict):
        return tree
    made = {name: _like(heads, name, ()) for name in heads.value}
    if sum(head.size for head in made.values()) > MAX_NODES:
        message = f"more than {MAX_NODES:,} values once likes are filled in"
        raise MultiwayError.one("too-large", message, span=heads.span)
    heads = dataclasses.replace(heads, value=made)
    return dataclasses.replace(tree, value={**tree.value, "heads": heads})


def _like(heads: Node, name: str, chain: tuple[str, ...]) -> Node:
    head = heads[name]
    like = head.get("like")
    if like is None:
        return head
    others = [other for other in heads.value if other != name]
    if not isinstance(like.value, str) or like.value not in others:
        raise MultiwayError.one(
            "unknown-head",
            f"head {quote(name)} cannot be like {like.kind()}",
            span=like.span,
            expected=one_of(others) or "another head, of which this spec has none",
            nearest=nearest(str(like.value), others),
        )
    if like.value in chain or len(chain) >= MAX_CHAIN:
        way = " -> ".join([*chain, name, like.value])
        cycle = f"head {quote(name)} is like itself: {way}"
        many = f"more than {MAX_CHAIN} heads are like one another"
        message = cycle if like.value in chain else many
        raise MultiwayError.one("cyclic-like", message, span=like.span)
    rest = {key: node for key, node in head.value.items() if key != "like"}
    base = _like(heads, like.value, (*chain, name))
    return dataclasses.replace(merge(base, dataclasses.replace(head, value=rest)), span=head.span)


def with_wiring(tree: Node, wirings: Mapping[str, Path]) -> Node:
    """The tree with its named wiring read and merged under what it says. wirings: name to file."""
    wiring, use = tree.get("wiring"), _used(tree)
    if wiring is None or use is None:
        return tree  # the schema check names what is wrong
    named = full_form(Wiring, strip(read_file(wiring_file(use, wirings))))
    named = dataclasses.replace(named, value={**named.value, "use": use})
    merged = dataclasses.replace(merge(named, wiring), span=wiring.span)
    return dataclasses.replace(tree, value={**tree.value, "wiring": merged})


def wiring_file(use: Node, wirings: Mapping[str, Path]) -> Path:
    """Where the wiring of a `use` stands. Raises MultiwayError for a name that there is not."""
    name = str(use.value)
    if names_file(name):
        return Path(name)
    if name not in wirings:
        raise MultiwayError.one(
            "unknown-wiring",
            f"there is no wiring named {quote(name)}",
            span=use.span,
            expected=one_of(sorted(wirings)),
            nearest=nearest(name, wirings),
        )
    return wirings[name]


def _used(tree: Node) -> Node | None:
    """The `use` of a document's wiring, where it is a text."""
    wiring = tree.get("wiring")
    use = wiring.get("use") if wiring is not None else None
    return use if use is not None and isinstance(use.value, str) else None


def _with_wiring_path(document: Node, folder: Path | None, *, of_spec: bool = True) -> Node:
    """The document with a wiring that is a file named from here, and no longer from its folder."""
    use = _used(document)
    if use is None or not names_file(use.value):
        return document
    path = _beside(use.value, use.span, folder, code="unknown-wiring", of_spec=of_spec)
    found = dataclasses.replace(use, value=str(path))
    wiring = document["wiring"]
    wiring = dataclasses.replace(wiring, value={**wiring.value, "use": found})
    return dataclasses.replace(document, value={**document.value, "wiring": wiring})
