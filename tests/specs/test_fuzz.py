"""Whatever is written, a spec loads and builds, or its author is told what is wrong.

Good specs are spoiled: as text (characters, lines, words) and as data (values, keys, whole parts
swapped). Nothing but MultiwayError may come out, and it must have a text that points into the spec.
"""

from __future__ import annotations

import copy
import functools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.heads import kinds
from multiway.specs.errors import MAX_PROBLEMS
from multiway.specs.language.document import Document
from multiway.specs.language.fields import TAGS, Config, Test, keys_of, kinds_in, unwrap
from multiway.specs.language.parts import ACTIVATIONS, Activation
from multiway.specs.text.source import parse

PARTS = Path(__file__).parent / "bad" / "parts"
EXAMPLES = Path(mw.__file__).parent / "specs" / "examples"
MOST_LAYERS = 8  # deeper ones load, but building them would take the time of many others

NASTY_TEXTS = [
    *("", " ", "~", "no", "yes", "010", "1:30", "2024-11-12", "1e-5", "1e999", "-1", "0", "1", "2"),
    *("1e9", "4097", "-0.0", ".nan", "1 / 0", "layer", "4 * width", "width / 5", "layer >= 1"),
    *("max(1, 2)", '"max(1, 2)"', "(((", "'", '"', "{", "}", "[", "]", "[]", "{}", "[~]", "[[]]"),
    *(
        "&a [*a]",
        "*a",
        "!!python/none x",
        "<<: {a: 1}",
        "? x",
        "- x",
        "\t",
        "\0",
        "\u2028",
        "é",
        "𝔞",
    ),
    *("true", "false", "image", "text", "text_a", "fused", "kind: rotary", "like: lm", "rms_norm"),
    *("classification", "features", "residual", "mudd", "extends: beit3", "extends: x.yaml"),
]
NASTY_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 0.5, 1e-5, 1e9, 1e10, 1e300, -0.0, 10**30),
    *("", "no", "0", "layer", "depth", "width", "width / 7", "1 / 0", "layer >= 1", "not layer"),
    *("1e300 * 1e300", "sqrt(-1)", "min(1)", "image", "text", "fused", "labels", "rms_norm"),
    *(
        "mudd",
        "residual",
        "lm",
        "a b",
        "A",
        "x\n",
        "\u0000",
        "*",
        "[!",
        "blocks.*",
        "ones",
        "newest",
    ),
    *(
        [],
        [[]],
        [None],
        ["image"],
        ["text", "image"],
        ["image", "image_a"],
        [["image", "text"]] * 2,
    ),
    *(
        {},
        {"": None},
        {"kind": None},
        {"kind": "rotary"},
        {"kind": "constant", "value": "1 / fan_in"},
    ),
    *({"like": "lm"}, {"use": "mudd"}, {"route": "modality"}, {"modality": "text"}, {"rows": 1}),
    {"route": "modality", "fused": {"when": ["vision", "text"], "where": "layer >= 1"}},
]


@functools.cache
def good_texts() -> list[str]:
    """Specs as they were written, and others in their merged form."""
    written = [path.read_text() for path in sorted(PARTS.glob("[dp]*.yaml"))]
    examples = [path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))]
    names = ["beit3-test", "mudd-pythia-test", "muddformer-test"]
    return [
        *written,
        *(text for text in examples if "extends:" not in text),
        *(mw.load(name).text() for name in names),
        "extends: beit3-test\nname: changed\nheads: {vqa: {like: captioning}}\ndims: {depth: 1}\n",
        "extends: mudd-pythia-test\nlayers:\n- {where: layer > 1, ffn: {gate: true}}\n",
    ]


def check(text: str, *, every_program: bool = False) -> None:
    """Loads and builds a spec, which works or raises MultiwayError."""
    try:
        spec = mw.load(parse(text, file="fuzz.yaml"))
        for name in spec.heads if spec.depth <= MOST_LAYERS else ():
            programs = program_names(spec.for_head(name))
            for program in programs[:40] if every_program else programs[:1]:
                mw.build(spec, head=name, program=program)
    except mw.MultiwayError as error:
        check_words(error)


def check_words(error: mw.MultiwayError) -> None:
    assert 1 <= len(error.problems) <= MAX_PROBLEMS
    for problem in error.problems:
        text = problem.render()
        assert problem.message
        assert problem.span is not None or problem.place, text
        assert len(text) < 2000, text
        assert all(character.isprintable() or character == "\n" for character in text), text
        if problem.span is not None and problem.span.text:
            assert 1 <= problem.span.column <= len(problem.span.text) + 1, text


# Text


def spoiled_text(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(good_texts()))
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from([change_characters, change_lines, change_word]))
        text = change(draw, text)
    return text


def change_characters(draw: st.DrawFn, text: str) -> str:
    start = draw(st.integers(0, len(text)))
    stop = min(start + draw(st.integers(0, 12)), len(text))
    middle = draw(
        st.one_of(
            st.just(""),
            st.just(text[start:stop] * 2),
            st.sampled_from(NASTY_TEXTS),
            st.text(max_size=4),
        )
    )
    return text[:start] + middle + text[stop:]


def change_lines(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    here, there = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    what = draw(st.sampled_from(["delete", "repeat", "swap", "indent"]))
    if what == "delete":
        del lines[here]
    elif what == "repeat":
        lines.insert(there, lines[here])
    elif what == "swap":
        lines[here], lines[there] = lines[there], lines[here]
    else:
        lines[here] = "  " + lines[here]
    return "\n".join(lines)


def change_word(draw: st.DrawFn, text: str) -> str:
    """Replaces a word by another one of the spec or by a nasty one."""
    words = [word for word in text.replace("\n", " ").split(" ") if word]
    if not words:
        return text
    old = draw(st.sampled_from(words)).strip("{}[],:")
    new = draw(st.sampled_from(words + NASTY_TEXTS)).strip(",")
    count = text.count(old) if old else 0
    if not count:
        return text
    parts = text.split(old)
    at = draw(st.integers(1, count))
    return old.join(parts[:at]) + new + old.join(parts[at:])


# Data


def spoiled_data(draw: st.DrawFn) -> str:
    """A good spec in which some values, or whole parts, are those of other places or nasty ones."""
    document = copy.deepcopy(yaml.safe_load(draw(st.sampled_from(good_texts()))))
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(document))
        holder, key = draw(st.sampled_from(places))
        other, other_key = draw(st.sampled_from(places))
        elsewhere = values_by_key().get(key, [None])
        choices = [
            st.sampled_from(elsewhere),
            st.just(other[other_key]),
            st.sampled_from(NASTY_VALUES),
        ]
        value = copy.deepcopy(draw(choices[draw(st.sampled_from([0, 0, 0, 1, 2]))]))
        if isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            key = draw(st.sampled_from(sorted(values_by_key())))
        holder[key] = value
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


@functools.cache
def values_by_key() -> dict[str, list[Any]]:
    """What good specs hold under a key, wherever it stands."""
    found: dict[str, list[Any]] = {}
    for text in good_texts():
        for holder, key in places_in(yaml.safe_load(text)):
            if isinstance(key, str) and holder[key] not in found.setdefault(key, []):
                found[key].append(holder[key])
    return found


def places_in(value: Any) -> Any:
    """Every (holder, key) of nested data."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places_in(value[key])


# Data that fits the schema, so that what follows it is reached


def fitting_data(draw: st.DrawFn) -> str:
    """A good spec in which some keys have other values, each of a type that the key takes."""
    document = copy.deepcopy(yaml.safe_load(draw(st.sampled_from(good_texts()))))
    for _ in range(draw(st.integers(1, 4))):
        holder, key, annotation = draw(st.sampled_from(list(keys_in(Document, document))))
        holder[key] = fitting(draw, annotation)
    return yaml.safe_dump(document, sort_keys=False)


def keys_in(cls: type[Config], mapping: dict[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """(holder, key, annotation) of every key that the mappings of a spec have or could have."""
    for key, (annotation, _) in keys_of(cls).items():
        if cls is Document and key == "heads":
            annotation = dict[str, Annotated[Any, kinds()]]
        if key != "multiway":
            yield mapping, key, annotation
        yield from keys_below(annotation, mapping.get(key))


def keys_below(annotation: Any, value: Any) -> Iterator[tuple[Any, str, Any]]:
    annotation, _ = unwrap(annotation)
    if not isinstance(value, dict):
        return
    if (found := kinds_in(annotation)) is not None:
        if (cls := found.classes.get(value.get(found.tag))) is not None:
            yield from keys_in(cls, value)
    elif typing.get_origin(annotation) is dict:
        inner = typing.get_args(annotation)[1]
        for name, child in value.items():
            yield value, name, inner
            yield from keys_below(inner, child)
    elif isinstance(annotation, type) and issubclass(annotation, Config):
        yield from keys_in(annotation, value)


NAMES = ["image", "text", "tokens", "audio", "vision", "vqa", "lm", "depth", "width", "other"]
WORDS = [*NAMES, "image_a", "text_b", "mudd", "residual", "cls of image", "mean of text", "fused"]
READ = ["image", "text", "tokens", "image_a", "text_b"]
NUMBERS = [0, 1, 2, 3, 4, 5, 8, 16, 48, 0.5, 1e-5, -1, 1e7, "4 * width", "layer", "layer + 1"]
NUMBERS += ["width / 5", "depth - 1", "1 / (depth - 1)", "depth - depth", "sources", "1 / fan_in"]
TESTS = [True, False, "layer >= 1", "layer", "depth > 3", "not layer", "last", "1 / layer > 0"]


def fitting(draw: st.DrawFn, annotation: Any) -> Any:
    """A value of the type that an annotation of the language asks for."""
    annotation, optional = unwrap(annotation)
    if optional and draw(st.integers(0, 7)) == 0:
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if (found := kinds_in(annotation)) is not None:
        return fitting_mapping(draw, draw(st.sampled_from(list(found.classes.values()))))
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return fitting_mapping(draw, annotation)
    if origin is tuple and arguments[0] is str:
        return draw(st.lists(st.sampled_from(draw(st.sampled_from([READ, WORDS]))), max_size=3))
    if origin is tuple:
        return [fitting(draw, arguments[0]) for _ in range(draw(st.integers(0, 3)))]
    if origin is dict:
        names = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
        return {name: fitting(draw, arguments[1]) for name in names}
    leaves: dict[Any, list[Any]] = {
        str: WORDS,
        bool: [True, False],
        Test: TESTS,
        Activation: list(ACTIVATIONS),
    }
    return draw(
        st.sampled_from(
            list(arguments) if arguments and origin is Literal else leaves.get(annotation, NUMBERS)
        )
    )


def fitting_mapping(draw: st.DrawFn, cls: type[Config]) -> dict[str, Any]:
    made = {}
    for key, (annotation, _) in keys_of(cls).items():
        if key in TAGS or draw(st.integers(0, 9)) < (9 if key in cls.required else 3):
            made[key] = fitting(draw, annotation)
    return {key: value for key, value in made.items() if value is not None}


texts = st.composite(spoiled_text)()
fitting_texts = st.composite(fitting_data)()
data = st.composite(spoiled_data)()
QUIET = list(HealthCheck)


@settings(max_examples=250, suppress_health_check=QUIET, print_blob=True)
@given(text=texts)
def test_spoiled_text(text: str) -> None:
    check(text)


@settings(max_examples=200, suppress_health_check=QUIET, print_blob=True)
@given(text=data)
def test_spoiled_data(text: str) -> None:
    check(text)


@settings(max_examples=200, suppress_health_check=QUIET, print_blob=True)
@given(text=fitting_texts)
def test_spoiled_values(text: str) -> None:
    check(text)


@settings(max_examples=300)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(NASTY_TEXTS)).map(" ".join))
def test_any_text(text: str) -> None:
    check(text)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@settings(max_examples=60_000, derandomize=False, suppress_health_check=QUIET, print_blob=True)
@given(text=texts | data | fitting_texts)
def test_spoiled_specs_for_long(text: str) -> None:
    check(text, every_program=True)


@pytest.mark.parametrize("index", range(len(good_texts())))
def test_what_is_spoiled_was_good(index: int) -> None:
    spec = mw.load(parse(good_texts()[index], file="fuzz.yaml"))
    assert spec.depth <= MOST_LAYERS
    for head in spec.heads:
        mw.build(spec, head=head)
