"""The JSON Schema (2020-12) of the language, made from its classes, and the check against it."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any

from multiway.specs.config import (
    Config,
    Count,
    Formula,
    Kinds,
    Offset,
    Real,
    Test,
    keys_of,
    kinds_in,
    unwrap,
)
from multiway.specs.errors import Report, nearest, one_of
from multiway.specs.language import Document
from multiway.specs.source import Node

NAME = r"^[a-z][a-z0-9_]*$"
_EXPRESSION = "a number, or an expression over dims"
_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


def document_schema(heads: Kinds) -> dict[str, Any]:
    """The schema of a whole spec. `heads` are the head kinds that are known.

    No key is required here, because a spec may extend another one; what is missing once everything
    is merged is reported by the conversion.
    """
    definitions: dict[str, Any] = {}
    root = _object(Document, definitions)
    head = _kinds(heads, definitions)
    root["properties"]["heads"] = {**_named(head), "description": "the tasks"}
    root["properties"]["init"]["propertyNames"] = {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "multiway spec",
        **root,
        "$defs": definitions,
    }


def _object(cls: type[Config], definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for name, (annotation, doc) in keys_of(cls).items():
        properties[name] = {**_value(annotation, definitions), "description": doc}
    return {
        "type": _types(cls),
        "description": (cls.__doc__ or "").split("\n")[0],
        "properties": properties,
        "additionalProperties": False,
        **_short_form(cls, properties),
    }


def _types(cls: type[Config]) -> list[str]:
    short = ["string"] if cls.short else []
    return ["object", *short, *(["boolean"] if cls.switch else []), "null"]


def _short_form(cls: type[Config], properties: dict[str, Any]) -> dict[str, Any]:
    if not cls.short or "enum" not in properties[cls.short]:
        return {}
    return {"if": {"type": "string"}, "then": {"enum": properties[cls.short]["enum"]}}


def _reference(cls: type[Config], definitions: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # stands for itself while it is being made
        definitions[cls.__name__] = _object(cls, definitions)
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _kinds(kinds: Kinds, definitions: dict[str, Any]) -> dict[str, Any]:
    branches = [
        {
            # Without the type, a bare string would satisfy every branch.
            "if": {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": _reference(cls, definitions),
        }
        for kind, cls in kinds.classes.items()
    ]
    return {
        "type": ["object", "string", "boolean", "null"],
        "properties": {"kind": {"enum": list(kinds.classes)}},
        "allOf": branches,
        "if": {"type": "string"},
        "then": {"enum": list(kinds.classes)},
    }


def _named(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "propertyNames": {"pattern": NAME},
        "additionalProperties": value,
    }


def _value(annotation: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if (kinds := kinds_in(unwrap(annotation)[0])) is not None:
        return _kinds(kinds, definitions)
    annotation, _ = unwrap(annotation)
    origin = typing.get_origin(annotation)
    if annotation in (Count, Offset, Real, Test, Formula) or origin is typing.Union:
        return {"type": ["number", "string", "null"], "x-expected": _EXPRESSION}
    if annotation in (str, bool, int):
        name = {str: "string", bool: "boolean", int: "integer"}[annotation]
        return {"type": [name, "null"]}
    if origin is typing.Literal:
        return {"enum": [*typing.get_args(annotation), None]}
    if origin is tuple:
        inner = typing.get_args(annotation)[0]
        return {"type": ["array", "null"], "items": _value(inner, definitions)}
    if origin is dict:
        return _named(_value(typing.get_args(annotation)[1], definitions))
    return _reference(annotation, definitions)


def check_schema(tree: Node, heads: Kinds, report: Report) -> None:
    """Adds what `jsonschema` finds in a merged spec to the report, at its place."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(document_schema(heads))
    errors = validator.iter_errors(tree.plain())
    for error in sorted(errors, key=lambda e: [str(part) for part in e.absolute_path]):
        _problem(tree, error, report)


def _walk(tree: Node, path: Iterable[str | int]) -> tuple[Node, Node | None, str]:
    """The node at a path, its parent, and the last name on the way."""
    node, parent, name = tree, None, "the spec"
    for part in path:
        parent, node = node, node.value[part]
        name = name if isinstance(part, int) else part
    return node, parent, name


def _problem(tree: Node, error: Any, report: Report) -> None:
    path = list(error.absolute_path)
    node, _, name = _walk(tree, path)
    schema = error.schema
    match error.validator:
        case "additionalProperties":
            known = list(schema["properties"])
            for extra in node.value:
                if extra not in known:
                    _unknown_key(extra, node, name, known, report)
        case "enum" | "const":
            known = [_shown(v) for v in schema.get("enum", [schema.get("const")]) if v is not None]
            report.add(
                "unknown-value",
                f"{node.kind()} is not a {name}"
                if name != "multiway"
                else f"version {node.kind()}",
                span=node.span,
                expected=one_of(known),
                nearest=nearest(str(node.value), known),
            )
        case "type":
            expected = schema.get("x-expected") or " or ".join(
                _WORDS[t] for t in schema["type"] if t != "null"
            )
            report.add("wrong-type", f"{name} is {node.kind()}", span=node.span, expected=expected)
        case "pattern":
            span = _walk(tree, path)[0].key_span(error.instance)
            report.add(
                "bad-name",
                f"{error.instance!r} cannot be a name",
                span=span,
                expected="small letters, digits and _, beginning with a letter",
            )
        case other:
            raise AssertionError(f"no error text for {other}")


def _shown(value: object) -> str:
    return (
        {True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool)
        else str(value)
    )


def _unknown_key(extra: str, node: Node, name: str, known: list[str], report: Report) -> None:
    report.add(
        "unknown-key",
        f"{extra!r} is not a key of {name}",
        span=node.key_span(extra),
        expected=one_of(known),
        nearest=nearest(extra, known),
    )
