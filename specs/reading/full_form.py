"""Short forms written out: `norm: rms_norm` as `norm: {kind: rms_norm}`, `static: true` as `{}`.

This comes before documents are merged. A change `{first_block: three_norms}` of a wiring that was
written `wiring: mudd` keeps `use: mudd`; merged as they stand, it would replace the name by a
mapping without one, and another wiring would hold without a word.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

from multiway.specs.language.document import Document
from multiway.specs.language.fields import Config, Kinds, keys_of, kinds_in, unwrap
from multiway.specs.text.source import Node


def full_document(node: Node, heads: Kinds) -> Node:
    """A document, or a part of one, in its full form. What does not fit stays as it is."""
    node = full_form(Document, node)
    if (tasks := node.get("heads")) is not None:
        full = full_form(dict[str, Annotated[Any, heads]], tasks)
        node = dataclasses.replace(node, value={**node.value, "heads": full})
    return node


def full_form(annotation: Any, node: Node) -> Node:
    """A value in the full form of what an annotation of the language asks for."""
    annotation, _ = unwrap(annotation)
    if (kinds := kinds_in(annotation)) is not None:
        return _kinds(kinds, node)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and isinstance(node.value, list):
        return dataclasses.replace(node, value=[full_form(arguments[0], n) for n in node.value])
    if origin is dict and isinstance(node.value, dict):
        items = {name: full_form(arguments[1], child) for name, child in node.value.items()}
        return dataclasses.replace(node, value=items)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return _mapping([annotation], _written_out(annotation, node))
    return node


def _written_out(cls: type[Config], node: Node) -> Node:
    if isinstance(node.value, str) and cls.short:
        return _with_key(cls.short, node)
    return Node({}, node.span) if node.value is True and cls.switch else node


def _with_key(key: str, node: Node) -> Node:
    return Node({key: node}, node.span, {key: node.span}, 2, depth=2)


def _kinds(kinds: Kinds, node: Node) -> Node:
    """A mapping whose kind may stand in the document that this one changes."""
    if isinstance(node.value, str):
        return _with_key(kinds.tag, node)
    kind = node.get(kinds.tag)
    known = kind is not None and isinstance(kind.value, str) and kind.value in kinds.classes
    classes = [kinds.classes[kind.value]] if kind and known else list(kinds.classes.values())
    return _mapping(classes, node)


def _mapping(classes: list[type[Config]], node: Node) -> Node:
    if not isinstance(node.value, dict):
        return node
    keys: dict[str, Any] = {}
    for cls in reversed(classes):
        keys.update({key: annotation for key, (annotation, _) in keys_of(cls).items()})
    items = {
        name: full_form(keys[name], child) if name in keys else child
        for name, child in node.value.items()
    }
    return dataclasses.replace(node, value=items)
