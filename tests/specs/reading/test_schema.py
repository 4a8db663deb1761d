"""The printed JSON Schema is a valid one, and says the same as the language does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import multiway as mw
from multiway.compiler.heads import kinds
from multiway.specs import document_schema
from multiway.specs.data_folders import WIRINGS
from multiway.specs.language.fields import Config, keys_of
from multiway.specs.reading.full_form import full_document
from multiway.specs.text.source import read_file
from multiway.zoo import catalogue

SPECS = Path(mw.__file__).parent / "specs"
ZOO = Path(mw.__file__).parent / "zoo"
NOT_SPECS = {"sizes", "variants", "weights", "card"}
DOCUMENTS = [
    *sorted(path for path in ZOO.glob("*/*.yaml") if path.stem not in NOT_SPECS),
    *sorted((SPECS / "examples").glob("*.yaml")),
    *sorted((Path(__file__).parents[1] / "bad" / "parts").glob("*.yaml")),
    SPECS / "defaults.yaml",
]
SCHEMA = document_schema(kinds())
MAPPINGS = {name: each for name, each in SCHEMA["$defs"].items() if name != "Activation"}
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def problems(document: Any) -> list[str]:
    return [f"{error.json_path}: {error.validator}" for error in VALIDATOR.iter_errors(document)]


def test_it_is_a_schema_of_2020_12() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_it_is_json_and_always_the_same() -> None:
    text = json.dumps(SCHEMA, allow_nan=False)
    assert json.loads(text) == SCHEMA
    assert json.dumps(document_schema(kinds())) == text


def test_every_reference_leads_somewhere() -> None:
    references = [value for place, value in leaves(SCHEMA) if place[-1] == "$ref"]
    assert references
    assert {str(each).removeprefix("#/$defs/") for each in references} <= set(SCHEMA["$defs"])


def leaves(value: Any, *place: str) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, (dict, list)):
        return [(place, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, child in items for leaf in leaves(child, *place, str(name))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_document_fits(path: Path) -> None:
    document = read_file(path)
    assert problems(document.plain()) == []
    assert problems(full_document(document, kinds()).plain()) == []


@pytest.mark.parametrize("entry", list(catalogue()), ids=lambda entry: entry.name)
def test_every_zoo_entry_fits_as_it_stands_and_merged(entry: Any) -> None:
    assert problems(entry.document.plain()) == []
    assert problems(mw.load(entry.name).tree.plain()) == []


@pytest.mark.parametrize("path", sorted(WIRINGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_wiring_fits(path: Path) -> None:
    assert problems({"wiring": read_file(path).plain()}) == []


def test_a_part_of_a_spec_fits() -> None:
    assert problems({"extends": "beit3", "heads": {"vqa": {"classes": 7}}}) == []
    assert (
        problems({"extends": "beit3", "block": {"attention": {"bias": None}}, "init": None}) == []
    )
    assert problems({}) == []


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"dim": {}}, "$: additionalProperties"),
        ({"block": {"ffn": {"activaton": "gelu"}}}, "$.block.ffn: additionalProperties"),
        ({"block": {"norm": "layernorm"}}, "$.block.norm: enum"),
        ({"block": {"norm": {"kind": "layernorm"}}}, "$.block.norm.kind: enum"),
        ({"block": {"norm": {"weight": "no"}}}, "$.block.norm.weight: type"),
        ({"block": {"attention": True}}, "$.block.attention: type"),
        ({"block": {"attention": {"position": "rotery"}}}, "$.block.attention.position: enum"),
        ({"block": {"attention": {"position": True}}}, "$.block.attention.position: type"),
        ({"layers": [None]}, "$.layers[0]: type"),
        ({"layers": [{"where": []}]}, "$.layers[0].where: type"),
        ({"wiring": {"mix": {"streams": ["q", "w"]}}}, "$.wiring.mix.streams[1]: enum"),
        ({"wiring": {"mix": {"streams": [None]}}}, "$.wiring.mix.streams[0]: enum"),
        ({"heads": {"lm": {"kind": "causal"}}}, "$.heads.lm.kind: enum"),
        (
            {"heads": {"lm": {"kind": "causal_lm", "classes": 3}}},
            "$.heads.lm: additionalProperties",
        ),
        ({"heads": {"lm": False}}, "$.heads.lm: type"),
        ({"heads": {"LM": "features"}}, "$.heads: pattern"),
        ({"heads": {"lm\n": "features"}}, "$.heads: pattern"),
        ({"dims": {"a b": 1}}, "$.dims: pattern"),
        ({"dims": {"a": True}}, "$.dims.a: type"),
        ({"dims": {"a": [1]}}, "$.dims.a: type"),
        ({"cite": [1]}, "$.cite[0]: type"),
        ({"cite": [None]}, "$.cite[0]: type"),
        ({"multiway": 2}, "$.multiway: enum"),
        ({"multiway": True}, "$.multiway: enum"),
        ({"name": "a/b"}, "$.name: pattern"),
        ({"name": "a\n"}, "$.name: pattern"),
        ([], "$: type"),
    ],
)
def test_what_does_not_fit(document: Any, place: str) -> None:
    assert problems(document) == [place]


@pytest.mark.parametrize(
    "document",
    [
        {"wiring": "mudd"},
        {"wiring": {"mix": {"static": True, "generator": {"hidden": 4, "norm": False}}}},
        {"block": {"norm": "rms_norm", "attention": {"sub_norm": True, "qk_norm": "layer_norm"}}},
        {"block": {"attention": {"position": "rotary"}}},
        {"heads": {"f": "features"}},
        {"init": {"*.bias": "zeros", "*": {"kind": "normal", "std": "1 / sqrt(fan_in)"}}},
        {"layers": [{"where": True, "ffn": {"norm": True}}, {"where": "layer > 1"}]},
        {"dims": {"width": 768, "ratio": 2.5, "hidden": "4 * width"}},
    ],
)
def test_short_forms_fit(document: Any) -> None:
    assert problems(document) == []


def test_every_key_says_what_it_is() -> None:
    silent = [
        f"{name}.{key}"
        for name, definition in [("spec", SCHEMA), *MAPPINGS.items()]
        for key, value in definition["properties"].items()
        if not value.get("description")
    ]
    assert silent == []


def test_every_mapping_says_what_it_is_and_refuses_other_keys() -> None:
    for name, definition in MAPPINGS.items():
        assert definition["additionalProperties"] is False, name
        assert definition["description"], name
        assert definition["x-expected"].startswith("a mapping"), name


def subclasses(cls: type[Config]) -> list[type[Config]]:
    """Those of the project: tests define kinds of heads as well."""
    found = [each for each in cls.__subclasses__() if each.__module__.startswith("multiway.")]
    return [*found, *(each for child in found for each in subclasses(child))]


def test_every_key_of_the_language_is_in_it() -> None:
    found = set(subclasses(Config))
    by_name = {cls.__name__: cls for cls in found}
    assert len(by_name) == len(found), "two mappings of one name"
    for name, definition in MAPPINGS.items():
        assert list(definition["properties"]) == list(keys_of(by_name[name])), name
    assert set(by_name) - set(MAPPINGS) <= {"Document", "Head", "HeadKind", "Chosen"}
