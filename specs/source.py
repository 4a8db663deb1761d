"""YAML text to a tree of nodes that know where they stand.

Only plain data is read: mappings, lists, strings, numbers, true / false and null. Sizes are limited on the event
stream, before anything is composed, and what YAML 1.1 would silently turn into something else (`no`, `010`, `1:30`,
dates, `1e-5` as a string) is either right here or stays a string that the type check then names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multiway.specs.errors import MultiwayError, Span

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,4})?")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}

type_names = {
    dict: "a mapping",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
}


@dataclass(frozen=True, eq=False)
class Node:
    """A YAML value with its place. `value` is a dict or list of Nodes, or a plain scalar."""

    value: Any
    span: Span
    keys: dict[str, Span] = field(default_factory=dict)
    size: int = 1
    quoted: bool = False

    def __getitem__(self, key: str) -> Node:
        return self.value[key]  # type: ignore[no-any-return]

    def get(self, key: str) -> Node | None:
        return self.value.get(key) if isinstance(self.value, dict) else None

    def key_span(self, key: str) -> Span:
        return self.keys.get(key, self.span)

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def kind(self) -> str:
        """What this is, in words for an error."""
        if self.value is None:
            return "nothing"
        if isinstance(self.value, (dict, list)):
            return type_names[type(self.value)]
        return f"{self.value!r}" if isinstance(self.value, str) else str(self.plain()).lower()


def read_file(path: Path) -> Node:
    """Parses a spec file. Raises MultiwayError for anything that is not a YAML mapping within the limits."""
    name = str(path)
    try:
        if path.is_dir():
            raise MultiwayError.one("not-a-file", "this is a directory, not a spec", place=name)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MultiwayError.one(
                "too-large", f"{size:,} bytes; a spec has at most {MAX_BYTES:,}", place=name
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise MultiwayError.one("no-such-file", "there is no such file", place=name) from None
    except OSError as error:
        raise MultiwayError.one(
            "unreadable", f"cannot be read: {error.strerror}", place=name
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MultiwayError.one(
            "not-utf8", f"not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}", place=name
        ) from None
    return parse(text, file=name)


def parse(text: str, *, file: str) -> Node:
    """Parses YAML text into a mapping Node. Raises MultiwayError."""
    if len(text) > MAX_BYTES:
        raise MultiwayError.one(
            "too-large", f"{len(text):,} characters; a spec has at most {MAX_BYTES:,}", place=file
        )
    root = parse_value(text, file=file)
    if root is None or root.value is None:
        raise MultiwayError.one("empty", "there is nothing in this spec", place=file)
    if not isinstance(root.value, dict):
        raise MultiwayError.one(
            "wrong-type", f"a spec is a mapping, this is {root.kind()}", span=root.span
        )
    return root


def parse_value(text: str, *, file: str) -> Node | None:
    """Parses YAML text into any Node, None where the text holds no value."""
    lines = text.split("\n")
    events = yaml.parse(text, Loader=_LOADER)
    try:
        return _Composer(file, lines, events).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        text_line = lines[line] if line < len(lines) else ""
        column = min(mark.column if mark else 0, len(text_line))
        span = Span(file, line + 1, column + 1, 1, text_line)
        problem = error.problem or error.context or "not YAML"
        raise MultiwayError.one("yaml-syntax", f"not valid YAML: {problem}", span=span) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "a character that YAML does not allow"
        raise MultiwayError.one("yaml-syntax", f"not valid YAML: {reason}", place=file) from None


class _Composer:
    def __init__(self, file: str, lines: list[str], events: Iterator[Any]) -> None:
        self.file, self.lines, self.events = file, lines, events
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise self.error("yaml-syntax", "a second document; a spec is one", event)
            if isinstance(event, yaml.NodeEvent):
                root = self.node(event, 1)
        return root

    def node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.error("too-deep", f"nested more than {MAX_DEPTH} levels deep", event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.error(
                    "yaml-syntax", f"alias *{event.anchor} has no anchor before it", event
                )
            return self.anchors[event.anchor]
        if event.tag is not None and event.tag != "!":
            raise self.error(
                "tag", f"tag {_short_tag(event.tag)!r}: a spec holds plain data only", event
            )
        node = self.compose(event, depth)
        if node.size > MAX_NODES:
            raise self.error(
                "too-large", f"more than {MAX_NODES:,} values once aliases are expanded", event
            )
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def compose(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            value = scalar(event.value) if event.implicit[0] else event.value
            return Node(value, self.span(event), quoted=event.style is not None)
        if isinstance(event, yaml.SequenceStartEvent):
            items = [self.node(child, depth + 1) for child in self.until(yaml.SequenceEndEvent)]
            return Node(items, self.span(event), size=1 + sum(item.size for item in items))
        return self.mapping(event, depth)

    def mapping(self, start: Any, depth: int) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Span] = {}
        for event in self.until(yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.error("wrong-type", "a key must be a plain name", event)
            name, span = event.value, self.span(event)
            if name in values:
                first = f"line {keys[name].line}"
                raise self.error(
                    "duplicate-key", f"{name!r} stands here twice (first in {first})", event
                )
            value = self.node(next(self.events), depth + 1)
            _check_split_call(name, span, value)
            values[name], keys[name] = value, span
        return Node(values, self.span(start), keys, 1 + sum(v.size for v in values.values()))

    def until(self, end: type) -> Iterator[Any]:
        for event in self.events:
            if isinstance(event, end):
                return
            yield event

    def span(self, event: Any) -> Span:
        start, stop = event.start_mark, event.end_mark
        text = self.lines[start.line] if start.line < len(self.lines) else ""
        length = stop.column - start.column if stop.line == start.line else len(text) - start.column
        return Span(self.file, start.line + 1, start.column + 1, max(length, 1), text)

    def error(self, code: str, message: str, event: Any) -> MultiwayError:
        return MultiwayError.one(code, message, span=self.span(event))


def _check_split_call(name: str, span: Span, value: Node) -> None:
    """`{h: max(1, 2)}` is two entries to YAML; say so instead of naming a strange key."""
    for text, place in ((name, span), (value.value, value.span)):
        quoted = place is value.span and value.quoted
        if isinstance(text, str) and not quoted and text.count("(") != text.count(")"):
            raise MultiwayError.one(
                "quote-expression",
                f"{text!r} is half an expression: YAML splits at commas inside {{ }} and [ ]",
                span=place,
                expected='the expression in quotes, as in hidden: "max(1, 2)"',
            )


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar: a number only where Python and JSON would read the same number."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    return text
