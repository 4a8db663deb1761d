"""The written model.py runs and is the model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from members import members
from strategies import random_inputs, randomise, sizes_of

import multiway as mw
from multiway.compiler.views.python import listing
from multiway.runtime.model import Model


def module_from(text: str, folder: Path) -> ModuleType:
    """Imports the text as a file of its own."""
    path = folder / "model.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("listed_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(model: Model) -> str:
    name = model.spec.name
    return listing(model.programs, name=name, head=model.spec.head_name, version="0")


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flat(item)]
    return [value]


@pytest.mark.parametrize(("name", "head"), members(apart=False))
def test_the_listing_computes_what_the_model_does(name: str, head: str, tmp_path: Path) -> None:
    model = mw.compile(name, head=head)
    randomise(model)
    before = set(model.state_dict())
    module = module_from(listed(model), tmp_path)
    assert list(module.PROGRAMS) == list(model.programs)
    for program in model.programs:
        graph = mw.build(model.spec, program=program)
        sizes = dict.fromkeys(sizes_of(graph), 5) | {"B": 2, "S": 40}
        given = random_inputs(graph, sizes, dtype=torch.float32)
        with torch.no_grad():
            want = flat(model.run(program, **given))
            got = flat(module.assemble(program, model)(*given.values()))
        assert len(got) == len(want)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert set(model.state_dict()) == before


def test_the_listing_is_the_same_every_time_and_knows_no_numbers() -> None:
    texts = [listed(mw.compile("mudd-pythia-test", seed=seed)) for seed in (0, 1)]
    assert texts[0] == texts[1]


def test_blocks_with_the_same_code_share_a_class() -> None:
    model = mw.compile("beit3-test", head="features", set={"depth": 5})
    text = listed(model)
    classes = text.count("(nn.Module):")
    assert classes == listed(mw.compile("beit3-test", head="features")).count("(nn.Module):")
    # Block 0 reads the embedding under another name.
    forward = text[text.index('"forward": {') :].splitlines()[2:6]
    assert [line.split(": ")[1] for line in forward] == ["ForwardBlocks1,"] * 4


def test_the_listing_reads_like_code() -> None:
    text = listed(mw.compile("beit3-test", head="imageclassification"))
    assert text.startswith('"""beit3-test, head imageclassification: written by multiway 0.')
    assert "multiway_ops_" not in text
    assert " = None" not in text
    assert "ops.patch_embed(" in text
    assert max(map(len, text.splitlines())) < 1000
