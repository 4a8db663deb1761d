"""The one error class of multiway, its warnings, and how they look to whoever has to act."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_PROBLEMS = 20
_CLIP = 100  # longest part of a source line that is shown
_QUOTED = 60  # longest part of a user's text inside a message


@dataclass(frozen=True)
class Span:
    """A place in a text: `line` and `column` count from 1, `text` is the whole line."""

    file: str
    line: int
    column: int
    length: int = 1
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def part(self, offset: int, length: int) -> Span:
        """The span of `length` characters that starts `offset` characters into this one."""
        return Span(self.file, self.line, self.column + offset, max(length, 1), self.text)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: what, where, and what would be right."""

    code: str
    message: str
    span: Span | None = None
    place: str = ""  # used where there is no text to point at: a weights file, a command option
    expected: str = ""
    nearest: str = ""
    notes: tuple[tuple[str, str], ...] = ()

    def render(self, kind: str = "error") -> str:
        """The text of it. kind: what it is called, error or warning."""
        where = str(self.span) if self.span else self.place
        first = f"{_visible(where)}: {kind}[{self.code}]: {_visible(self.message)}"
        lines = [first.removeprefix(": ")]
        if self.span and self.span.text:
            lines += _excerpt(self.span)
        hints = [("expected", self.expected), ("nearest", self.nearest), *self.notes]
        shown = [(label + ":", text) for label, text in hints if text]
        width = max((len(label) for label, _ in shown), default=0)
        lines += [f"  {label:<{width}} {_visible(text)}" for label, text in shown]
        return "\n".join(lines)


def _visible(text: str) -> str:
    """The text with escapes for what a terminal would not show, or would act on."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _excerpt(span: Span) -> list[str]:
    text = "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in span.text.rstrip("\r\n"))
    start = 0
    if len(text) > _CLIP:
        start = max(0, min(span.column - 1 - _CLIP // 4, len(text) - _CLIP))
        text = text[start : start + _CLIP]
    caret = span.column - 1 - start
    before, under = text[:caret], text[caret : caret + span.length]
    marks = " " * _columns(before) + "^" * max(_columns(under), 1)
    return [f"{span.line:>5} | {text}", f"      | {marks}"]


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


class MultiwayError(Exception):
    """What the user gave cannot be used. Holds every problem found, at most `MAX_PROBLEMS`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.render())

    def render(self) -> str:
        return "\n\n".join(problem.render() for problem in self.problems)

    @classmethod
    def one(cls, code: str, message: str, **where: object) -> MultiwayError:
        return cls([Problem(code=code, message=message, **where)])  # type: ignore[arg-type]


class MultiwayWarning(UserWarning):
    """What the user gave can be used, and probably is not what was meant."""


@dataclass
class Report:
    """Collects problems, so that a user sees all of them at once and none twice. Warnings are
    problems that stop nothing."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether nothing more is kept, so that looking further is in vain."""
        return len(self.problems) >= MAX_PROBLEMS

    def add(self, code: str, message: str, **where: object) -> None:
        self.keep(Problem(code=code, message=message, **where))  # type: ignore[arg-type]

    def extend(self, error: MultiwayError) -> None:
        for problem in error.problems:
            self.keep(problem)

    def keep(self, problem: Problem) -> None:
        """Adds a problem, unless the same is said of the same place already."""
        if not self.full and all(_identity(p) != _identity(problem) for p in self.problems):
            self.problems.append(problem)

    def warn(self, code: str, message: str, **where: object) -> None:
        problem = Problem(code=code, message=message, **where)  # type: ignore[arg-type]
        if all(_identity(each) != _identity(problem) for each in self.warnings):
            self.warnings.append(problem)

    def raise_if_any(self) -> None:
        if self.problems:
            raise MultiwayError(self.problems)


def _identity(problem: Problem) -> tuple[object, ...]:
    return problem.code, problem.message, problem.span, problem.place


def quote(text: str) -> str:
    """A text of the user's in quotes, cut where it is long."""
    return repr(text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "...")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or an empty string."""
    if len(name) > _QUOTED:
        return ""  # no known name is that long, and comparing would take long
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else ""


def one_of(names: Iterable[str], *, limit: int = 24) -> str:
    """`one of a, b, c` for an error's `expected` line."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f"one of {', '.join(names[:limit])}{more}" if len(names) > 1 else ", ".join(names)
