"""The kinds of record that the language is made of."""

from __future__ import annotations

import multiway as mw
from multiway.specs.language.fields import keys_of
from multiway.specs.language.routing import Modality


def test_a_default_dict_belongs_to_one_object() -> None:
    node = mw.load("beit3-test").tree
    first, second = Modality(node=node), Modality(node=node)
    assert first.ways == second.ways == {}
    assert first.ways is not second.ways


def test_every_key_has_a_line_of_documentation() -> None:
    assert all(doc for _, doc in keys_of(Modality).values())
