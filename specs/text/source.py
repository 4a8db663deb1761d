"""YAML text to a tree of nodes that know where they stand.

Only plain data is read: mappings, lists, strings, numbers, true / false and null. Sizes are limited
on the event stream, before anything is composed, and what YAML 1.1 would silently turn into
something else (`no`, `010`, `1:30`, dates, `1e-5` as a string) is either right here or stays a
string that the type check then names.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multiway.specs.errors import MultiwayError, Span, quote

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,4})?")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}

# Where YAML sees the end of a line, and the characters that it does not allow.
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_FORBIDDEN = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, eq=False)
class Node:
    """A YAML value with its place. `value` is a dict or list of Nodes, or a plain scalar.

    The place of a mapping or a list is the key that names it. `size` counts the values inside,
    aliases expanded; `depth` the levels.
    """

    value: Any
    span: Span
    keys: dict[str, Span] = field(default_factory=dict)
    size: int = 1
    quoted: bool = False
    depth: int = 1

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
        match self.value:
            case None:
                return "nothing"
            case dict():
                return "a mapping"
            case list():
                return "a list"
            case str():
                return quote(self.value)
            case _:
                return str(self.value).lower()


def read_file(path: Path) -> Node:
    """Parses a spec file. Raises MultiwayError unless it is a YAML mapping within the limits."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            size = max(os.fstat(file.fileno()).st_size, len(data))
    except IsADirectoryError:
        raise MultiwayError.one(
            "not-a-file", "this is a folder, not a spec", place=name, expected="a .yaml file"
        ) from None
    except FileNotFoundError:
        raise MultiwayError.one("no-such-file", "there is no such file", place=name) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MultiwayError.one("unreadable", f"cannot be read: {reason}", place=name) from None
    if len(data) > MAX_BYTES:
        raise _too_large(f"{size:,} bytes", name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MultiwayError.one(
            "not-utf8",
            f"line {line} is not UTF-8 text: it holds the byte 0x{data[error.start]:02x}",
            place=name,
            expected="a text file saved as UTF-8",
        ) from None
    return parse(text, file=name)


def _too_large(size: str, file: str) -> MultiwayError:
    return MultiwayError.one(
        "too-large",
        f"{size} are too many for a spec",
        place=file,
        expected=f"at most {MAX_BYTES:,}",
    )


_SMALLEST = "keys and their values, as in `multiway: 1`"


def parse(text: str, *, file: str) -> Node:
    """Parses YAML text into a mapping Node. Raises MultiwayError."""
    if len(text) > MAX_BYTES:
        raise _too_large(f"{len(text):,} characters", file)
    root = parse_value(text, file=file)
    if root is None or root.value is None:
        raise MultiwayError.one(
            "empty", "there is nothing in this spec", place=file, expected=_SMALLEST
        )
    if not isinstance(root.value, dict):
        raise MultiwayError.one(
            "wrong-type",
            f"a spec is a mapping, this is {root.kind()}",
            span=root.span,
            expected=_SMALLEST,
        )
    return root


def parse_value(text: str, *, file: str) -> Node | None:
    """Parses YAML text into any Node, None where the text holds no value."""
    text = text.removeprefix("\ufeff")
    lines = _BREAK.split(text)
    if (bad := _FORBIDDEN.search(text)) is not None:
        raise _forbidden(bad[0], _BREAK.split(text[: bad.start()]), file, lines)
    try:
        return _Composer(file, lines, yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file, lines) from None


def _forbidden(character: str, before: list[str], file: str, lines: list[str]) -> MultiwayError:
    line, column = len(before), len(before[-1]) + 1
    return MultiwayError.one(
        "yaml-syntax",
        f"the character {character!r} may not stand in YAML",
        span=Span(file, line, column, 1, lines[line - 1]),
    )


_REMEDIES = {
    "mapping values are not allowed in this context": 'quotes around a text that holds ": "',
    "did not find expected ',' or '}'": "a comma, or the } of the mapping",
    "did not find expected ',' or ']'": "a comma, or the ] of the list",
    "did not find expected key": "the keys of one mapping in one column",
    "could not find expected ':'": "a colon and a value behind the key",
    "found character that cannot start any token": "quotes around a text that begins like this",
}


def _syntax_error(error: yaml.MarkedYAMLError, file: str, lines: list[str]) -> MultiwayError:
    """What YAML's own parser refuses, in its words, at its place."""
    mark = error.problem_mark or error.context_mark
    span = _at(mark, file, lines)
    problem = error.problem or error.context or "cannot be read"
    expected = _REMEDIES.get(problem, "")
    if span.text[span.column - 1 : span.column] == "\t":
        expected = "spaces in front of a line; YAML does not take tabs there"
    start = _at(error.context_mark, file, lines)
    notes = (("context", f"{error.context}, which begins at {start}"),)
    return MultiwayError.one(
        "yaml-syntax",
        f"not valid YAML: {problem}",
        span=span,
        expected=expected,
        notes=notes if error.context_mark is not None and start != span else (),
    )


def _at(mark: Any, file: str, lines: list[str]) -> Span:
    """The place of a parser's mark; for the end of the text, where its last line ends."""
    line, column = (mark.line, mark.column) if mark is not None else (0, 0)
    if not any(text.strip() for text in lines[line:]):
        line = max((i for i, text in enumerate(lines) if text.strip()), default=0)
        column = len(lines[line].rstrip())
    column = min(column, len(lines[line]))
    return Span(file, line + 1, column + 1, 1, lines[line])


class _Composer:
    def __init__(self, file: str, lines: list[str], events: Iterator[Any]) -> None:
        self.file, self.lines, self.events = file, lines, events
        self.anchors: dict[str, Node] = {}
        self.count = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise self.error("yaml-syntax", "a second document; a spec is one", event)
            if isinstance(event, yaml.NodeEvent):
                root = self.node(event, 1)
        return root

    def node(self, event: Any, depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH:
            raise self.too_deep(event)
        if self.count > MAX_NODES:
            raise self.error("too-large", f"more than {MAX_NODES:,} values", event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.error(
                    "yaml-syntax", f"alias *{event.anchor} has no anchor before it", event
                )
            return self.anchors[event.anchor]
        if event.tag is not None and event.tag != "!":
            raise self.error(
                "tag",
                f"the tag {quote(_short_tag(event.tag))} has no meaning here",
                event,
                expected="plain data: mappings, lists, texts, numbers, true, false and ~",
            )
        node = self.compose(event, depth)
        if node.depth > MAX_DEPTH:  # deeper than it looks, by aliases inside aliases
            raise self.too_deep(event)
        if node.size > MAX_NODES:
            raise self.error(
                "too-large", f"more than {MAX_NODES:,} values once aliases are expanded", event
            )
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def too_deep(self, event: Any) -> MultiwayError:
        return self.error("too-deep", f"nested more than {MAX_DEPTH} levels deep", event)

    def compose(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            value = scalar(event.value) if event.implicit[0] else event.value
            return Node(value, self.span(event), quoted=bool(event.style))
        if isinstance(event, yaml.SequenceStartEvent):
            items = [self.node(child, depth + 1) for child in self.until(yaml.SequenceEndEvent)]
            return _collection(items, items, self.span(event))
        return self.mapping(event, depth)

    def mapping(self, start: Any, depth: int) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Span] = {}
        for event in self.until(yaml.MappingEndEvent):
            name, span = self.key(event), self.span(event)
            if name in values:
                raise self.error(
                    "duplicate-key",
                    f"{quote(name)} stands here twice",
                    event,
                    notes=(("first", f"at {keys[name]}"),),
                )
            value = self.node(next(self.events), depth + 1)
            if start.flow_style:
                key = Node(name, span, quoted=bool(event.style))
                for each in (key, value):
                    _check_split_call(each)
            if isinstance(value.value, (dict, list)):
                value = dataclasses.replace(value, span=span)
            values[name], keys[name] = value, span
        return _collection(values, list(values.values()), self.span(start), keys)

    def key(self, event: Any) -> str:
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)
        raise self.error("wrong-type", "this cannot be a key", event, expected="a plain name")

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

    def error(self, code: str, message: str, event: Any, **more: Any) -> MultiwayError:
        return MultiwayError.one(code, message, span=self.span(event), **more)


def _collection(
    value: Any, children: list[Node], span: Span, keys: dict[str, Span] | None = None
) -> Node:
    size = 1 + sum(child.size for child in children)
    depth = 1 + max((child.depth for child in children), default=0)
    return Node(value, span, keys or {}, size, depth=depth)


def _check_split_call(node: Node) -> None:
    """`{h: max(1, 2)}` is two entries to YAML; say so instead of naming a strange key."""
    text = node.value
    if isinstance(text, str) and not node.quoted and text.count("(") != text.count(")"):
        whole = _call_at(node.span) or text
        raise MultiwayError.one(
            "quote-expression",
            "YAML ends a value at the comma, so this expression needs quotes",
            span=dataclasses.replace(node.span, length=len(whole)),
            expected=f'"{whole}"',
        )


def _call_at(span: Span) -> str:
    """The text at a place up to the bracket that closes its first one, if it does in this line."""
    text, level = span.text[span.column - 1 :], 0
    for end, character in enumerate(text, 1):
        level += (character == "(") - (character == ")")
        if level == 0 and character == ")":
            return text[:end]
    return ""


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar: a number only where Python and JSON would read the same one."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    return text
