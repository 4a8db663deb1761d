"""How specs build on one another: `extends`, named wirings, `--set`, per-layer changes.

Mappings merge key by key, lists replace, `~` deletes, and a changed `kind:` or `use:` replaces its
whole mapping, because the keys of one kind mean nothing to another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multiway.specs.errors import MultiwayError, Span, nearest, one_of
from multiway.specs.source import MAX_NODES, Node, parse_value, read_file

MAX_EXTENDS = 16
WIRINGS = Path(__file__).parent / "wirings"
DEFAULTS = Path(__file__).parent / "defaults.yaml"

Resolver = Callable[[str], Node | None]
"""From the name of a spec to its document, or None when there is none of that name."""


def strip(node: Node) -> Node:
    """The node without the keys whose value is `~`."""
    if not isinstance(node.value, dict):
        return node
    kept = {name: strip(child) for name, child in node.value.items() if child.value is not None}
    return Node(kept, node.span, node.keys, node.size)


def merge(base: Node, change: Node) -> Node:
    """`base` with `change` laid over it."""
    if not (isinstance(base.value, dict) and isinstance(change.value, dict)):
        return strip(change)
    if any(_differs(base, change, name) for name in ("kind", "use")):
        return strip(change)
    values = dict(base.value)
    for name, child in change.value.items():
        if child.value is None:
            values.pop(name, None)
        else:
            values[name] = merge(values[name], child) if name in values else strip(child)
    # The place of a mapping that both sides wrote is where it was written first.
    return Node(values, base.span, {**base.keys, **change.keys}, base.size + change.size)


def _differs(base: Node, change: Node, name: str) -> bool:
    old, new = base.get(name), change.get(name)
    return new is not None and (old is None or old.value != new.value) and base.value != {}


def extend(document: Node, resolver: Resolver, *, folder: Path | None = None) -> Node:
    """The document with everything it extends merged in. Raises MultiwayError."""
    return _extend(document, resolver, folder, ())


def _extend(
    document: Node, resolver: Resolver, folder: Path | None, chain: tuple[str, ...]
) -> Node:
    parent = document.get("extends")
    if parent is None or parent.value is None:
        return strip(document)
    name = str(parent.value)
    if name in chain or len(chain) >= MAX_EXTENDS:
        way = " -> ".join([*chain, name])
        raise MultiwayError.one("cyclic-extends", f"extends itself: {way}", span=parent.span)
    base, base_folder = _find(name, parent.span, resolver, folder)
    merged = merge(_extend(base, resolver, base_folder, (*chain, name)), document)
    if merged.size > MAX_NODES:
        raise MultiwayError.one("too-large", "too many values once merged", span=parent.span)
    return merged


def _find(
    name: str, span: Span, resolver: Resolver, folder: Path | None
) -> tuple[Node, Path | None]:
    if name.endswith((".yaml", ".yml")):
        return _file(name, span, folder)
    found = resolver(name)
    if found is None:
        raise MultiwayError.one(
            "unknown-spec",
            f"there is no spec named {name!r}",
            span=span,
            expected="a name that `multiway zoo` lists, or a .yaml file beside this one",
            nearest=nearest(name, getattr(resolver, "names", ())),
        )
    return found, None


def _file(name: str, span: Span, folder: Path | None) -> tuple[Node, Path]:
    if folder is None:
        raise MultiwayError.one(
            "unknown-spec", f"{name!r} is a file, but this spec is not one", span=span
        )
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise MultiwayError.one(
            "path-escapes", f"{name!r} leaves the folder of this spec", span=span,
            expected="a file in the same folder or below",
        )  # fmt: skip
    if not path.is_file():
        raise MultiwayError.one("unknown-spec", f"there is no file {name!r} here", span=span)
    return read_file(path), path.parent


def apply_sets(tree: Node, settings: Mapping[str, Any]) -> Node:
    """The tree with `--set` values laid over it. A name without a dot is a dim."""
    for name, value in settings.items():
        tree = merge(tree, _setting(tree, name, value))
    return tree


def _setting(tree: Node, name: str, value: Any) -> Node:
    text = f"{name}={value if isinstance(value, str) else _yaml(value)}"
    span = Span("--set", 1, 1, len(name), text)
    dims = tree.get("dims")
    if "." not in name and (dims is None or name not in dims.value):
        known = list(dims.value) if dims is not None and isinstance(dims.value, dict) else []
        raise MultiwayError.one(
            "unknown-set",
            f"{name!r} is not a dim of this spec",
            span=span,
            expected=f"{one_of(known)}; anything else by its path, as in block.order=parallel",
            nearest=nearest(name, known),
        )
    leaf = _leaf(value, text, len(name) + 1)
    if "." not in name:
        return _nest(["dims", name], [0, 0], leaf, span)
    parts = name.split(".")
    starts = [sum(len(part) + 1 for part in parts[:i]) for i in range(len(parts))]
    return _nest(parts, starts, leaf, span)


def _nest(parts: list[str], starts: list[int], leaf: Node, span: Span) -> Node:
    for part, start in zip(reversed(parts), reversed(starts), strict=True):
        key = span.part(start, len(part))
        if not part:
            raise MultiwayError.one("unknown-set", "a name is missing here", span=key)
        leaf = Node({part: leaf}, span, {part: key}, 1 + leaf.size)
    return leaf


def _leaf(value: Any, text: str, shift: int) -> Node:
    node = parse_value(value if isinstance(value, str) else _yaml(value), file="--set")
    span = Span("--set", 1, shift + 1, max(len(text) - shift, 1), text)
    if node is None:
        return Node(None, span)
    return _moved(node, span)


def _moved(node: Node, span: Span) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {name: _moved(child, span) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child, span) for child in value]
    return Node(value, span, {name: span for name in node.keys}, node.size)


def _yaml(value: Any) -> str:
    return json.dumps(value)  # JSON is YAML


def with_defaults(tree: Node) -> Node:
    """The tree with what holds where a spec says nothing."""
    return merge(read_file(DEFAULTS), tree)


def with_likes(tree: Node) -> Node:
    """The tree with every head that is `like` another merged over that one."""
    heads = tree.get("heads")
    if heads is None or not isinstance(heads.value, dict):
        return tree
    made = {name: _like(heads, name, ()) for name in heads.value}
    heads = Node(made, heads.span, heads.keys, heads.size)
    return Node({**tree.value, "heads": heads}, tree.span, tree.keys, tree.size)


def _like(heads: Node, name: str, chain: tuple[str, ...]) -> Node:
    head = heads[name]
    like = head.get("like")
    if like is None:
        return head
    if like.value not in heads.value or like.value in (*chain, name):
        raise MultiwayError.one(
            "unknown-head",
            f"head {name!r} cannot be like {like.kind()}",
            span=like.span,
            expected=one_of(n for n in heads.value if n != name),
            nearest=nearest(str(like.value), heads.value),
        )
    rest = {key: node for key, node in head.value.items() if key != "like"}
    return merge(_like(heads, like.value, (*chain, name)), Node(rest, head.span, head.keys))


def with_wiring(tree: Node) -> Node:
    """The tree with its named wiring read from specs/wirings and merged under what the spec says."""
    wiring = tree["wiring"]
    if isinstance(wiring.value, str):
        wiring = Node({"use": wiring}, wiring.span, {"use": wiring.span})
    if not isinstance(wiring.value, dict):
        return tree  # the schema check names it
    use = wiring.get("use")
    if use is not None:
        named = _named_wiring(str(use.value), use.span)
        wiring = merge(Node({**named.value, "use": use}, named.span, named.keys), wiring)
    return Node({**tree.value, "wiring": wiring}, tree.span, tree.keys, tree.size)


def wiring_names() -> list[str]:
    """The named wirings, sorted."""
    return sorted(path.stem for path in WIRINGS.glob("*.yaml"))


def _named_wiring(name: str, span: Span) -> Node:
    if not re.fullmatch(r"[a-z0-9_-]+", name) or not (WIRINGS / f"{name}.yaml").is_file():
        raise MultiwayError.one(
            "unknown-wiring",
            f"there is no wiring named {name!r}",
            span=span,
            expected=one_of(wiring_names()),
            nearest=nearest(name, wiring_names()),
        )
    return strip(read_file(WIRINGS / f"{name}.yaml"))
