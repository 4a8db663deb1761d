"""The JSON Schema (2020-12) of the language, made from its classes, and the check against it."""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterable
from itertools import islice
from typing import Any

from multiway.specs.errors import Problem, Report, nearest, one_of, quote
from multiway.specs.language.document import Document
from multiway.specs.language.fields import (
    NAME,
    NAME_RULE,
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
from multiway.specs.language.parts import ACTIVATIONS, Activation
from multiway.specs.library import Library
from multiway.specs.text.source import Node

# Names of models end up in file names and in the code that is written for them.
_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)"
_MODEL_NAME_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
_EXPRESSION = "a number, or an expression over dims"
_ACTIVATION = "Activation"
_MAX_ERRORS = 200  # problems that are looked at, of which the first in the file are shown
_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "boolean": "true or false",
    "integer": "a whole number",
}


def document_schema(heads: Kinds, activations: tuple[str, ...] = ACTIVATIONS) -> dict[str, Any]:
    """The schema of a whole spec. `heads` are the head kinds that are known.

    No key is required here, because a spec may extend another one; what is missing once everything
    is merged is reported by the conversion.
    """
    definitions: dict[str, Any] = {_ACTIVATION: {"enum": [*activations, None]}}
    root = _object(Document, definitions)
    root["type"] = "object"
    properties = root["properties"]
    properties["name"] |= {"pattern": _MODEL_NAME, "x-expected": _MODEL_NAME_RULE}
    properties["heads"] = {**_named(_kinds(heads, definitions)), "description": "the tasks"}
    for patterns in (properties["init"], definitions["Wiring"]["properties"]["init"]):
        patterns["propertyNames"] = {}
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
        "x-expected": _forms(cls, properties),
        "description": (cls.__doc__ or "").split("\n")[0],
        "properties": properties,
        "additionalProperties": False,
        **_short_form(cls, properties),
    }


def _types(cls: type[Config]) -> list[str]:
    short = ["string"] if cls.short else []
    return ["object", *short, *(["boolean"] if cls.switch else []), "null"]


def _forms(cls: type[Config], properties: dict[str, Any]) -> str:
    """What may stand for a mapping, in words."""
    kinds = properties[cls.short].get("enum", ["a name"]) if cls.short else []
    forms = ["a mapping", *(str(kind) for kind in kinds if kind is not None)]
    forms += ["true", "false"] if cls.switch else []
    return f"{', '.join(forms[:-1])} or {forms[-1]}" if len(forms) > 1 else forms[0]


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
    names = list(kinds.classes)
    branches = [
        {
            "if": {"properties": {kinds.tag: {"const": kind}}, "required": [kinds.tag]},
            "then": _reference(cls, definitions),
        }
        for kind, cls in kinds.classes.items()
    ]
    short = {"if": {"type": "string"}, "then": {"enum": names}}
    return {
        "type": ["object", "string", "null"],
        "x-expected": f"a mapping, or its {kinds.tag} alone",
        "properties": {kinds.tag: {"enum": names}},
        "allOf": [short, *({"if": {"type": "object"}, "then": each} for each in branches)],
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
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Test:
        expected = "true, false, or a test as in layer >= depth - 3"
        return {"type": ["boolean", "number", "string", "null"], "x-expected": expected}
    if annotation in (Count, Offset, Real, Formula) or origin is typing.Union:
        return {"type": ["number", "string", "null"], "x-expected": _EXPRESSION}
    if annotation is Activation:
        return {"$ref": f"#/$defs/{_ACTIVATION}"}
    if annotation in (str, bool, int):
        name = {str: "string", bool: "boolean", int: "integer"}[annotation]
        return {"type": [name, "null"]}
    if origin is typing.Literal:
        return {"enum": [*arguments, None]}
    if origin is tuple:
        return {"type": ["array", "null"], "items": _item(arguments[0], definitions)}
    if origin is dict:
        return _named(_value(arguments[1], definitions))
    return _reference(annotation, definitions)


def _item(annotation: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The same without null: in a list there is nothing that `~` could delete."""
    value = _value(annotation, definitions)
    if "type" in value:
        value["type"] = [each for each in value["type"] if each != "null"]
    elif "enum" in value:
        value["enum"] = [each for each in value["enum"] if each is not None]
    else:
        value = {"allOf": [value, {"type": "object"}]}
    return value


# The check


@functools.lru_cache(maxsize=8)
def _validator(heads: Kinds, activations: tuple[str, ...]) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(document_schema(heads, activations))


def check_schema(tree: Node, library: Library, report: Report) -> None:
    """Adds what `jsonschema` finds in a merged spec to the report, in the order of the text."""
    validator = _validator(library.heads, library.activations)
    found = Report()
    problems: list[Problem] = []
    for error in islice(validator.iter_errors(tree.plain()), _MAX_ERRORS):
        found.problems.clear()
        _problem(tree, error, found)
        problems += found.problems
    for problem in sorted(problems, key=_position):
        report.keep(problem)


def _position(problem: Problem) -> tuple[int, int]:
    assert problem.span is not None
    return problem.span.line, problem.span.column


def _walk(tree: Node, path: Iterable[str | int]) -> Node:
    for part in path:
        tree = tree.value[part]
    return tree


def _problem(tree: Node, error: Any, report: Report) -> None:
    path = list(error.absolute_path)
    node, name, schema = _walk(tree, path), _name_at(path), error.schema
    match error.validator:
        case "additionalProperties":
            known = list(schema["properties"])
            for extra in [each for each in node.value if each not in known][:_MAX_ERRORS]:
                _unknown_key(extra, node, name, known, report)
        case "enum":
            _unknown_value(node, path, [str(v) for v in schema["enum"] if v is not None], report)
        case "type":
            expected = schema.get("x-expected") or _types_in_words(schema)
            if schema["type"][0] == "string" and not isinstance(node.value, (dict, list)):
                expected += "; quotes make a text of it"
            message = f"{name} is {node.kind()}"
            report.add("wrong-type", message, span=node.span, expected=expected)
        case "pattern":
            # Of a key the error knows the mapping and the text, of a value its place.
            is_key = isinstance(node.value, dict)
            report.add(
                "bad-name",
                f"{quote(error.instance)} cannot be a name",
                span=node.key_span(error.instance) if is_key else node.span,
                expected=schema.get("x-expected", NAME_RULE),
                nearest=_as_name(error.instance) if is_key else "",
            )
        case other:
            raise AssertionError(f"no error text for {other}")


def _as_name(text: str) -> str:
    made = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return made if re.match(NAME, made) and len(made) < 40 else ""


def _name_at(path: list[str | int]) -> str:
    """What an error calls the value at a path: its last name; two for the named parts of a spec."""
    names = [part for part in path if isinstance(part, str)]
    if len(names) == 2 and names[0] in ("dims", "inputs", "embed", "heads", "init"):
        return ".".join(names)
    return names[-1] if names else "a spec"


def _unknown_value(node: Node, path: list[str | int], known: list[str], report: Report) -> None:
    name = _name_at(path)
    if name == "multiway":
        message = f"this multiway reads version {known[0]} of the language, not {node.kind()}"
    elif name == "kind":
        parts = {"heads": "head", "init": "init"}
        part = parts.get(str(path[0])) if len(path) == 3 else None
        message = f"{node.kind()} is not a kind of {part or _name_at(path[:-1])}"
    elif isinstance(path[-1], int):
        message = f"{node.kind()} cannot stand in {name}"
    else:
        message = f"{name} cannot be {node.kind()}"
    report.add(
        "unknown-value",
        message,
        span=node.span,
        expected=one_of(known),
        nearest=nearest(str(node.value), known) if len(known) > 1 else "",
    )


def _types_in_words(schema: dict[str, Any]) -> str:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = [_WORDS[each] for each in types if each != "null"]
    return " or ".join(words)


def _unknown_key(extra: str, node: Node, name: str, known: list[str], report: Report) -> None:
    if extra == "<<":
        message = "YAML's merge key '<<' is not read"
        expected = "extends, to build on another spec; like, to build on another head"
        report.add("unknown-key", message, span=node.key_span(extra), expected=expected)
        return
    report.add(
        "unknown-key",
        f"{quote(extra)} is not a key of {name}",
        span=node.key_span(extra),
        expected=one_of(known),
        nearest=nearest(extra, known),
    )
