"""The op of docs/your_own_files.md is a plugin, and does what the page says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import own_op
import pytest
import torch

import multiway as mw
from multiway.specs import plugins


@pytest.fixture(autouse=True)
def added() -> Iterator[None]:
    mw.use_plugin(own_op)
    yield
    plugins.forget("own_op")


def test_a_spec_names_it() -> None:
    model = mw.compile("pythia-test", set={"block": "{ffn: {activation: mish}}"})
    tokens = torch.arange(6)[None]
    assert not torch.equal(model(tokens), mw.compile("pythia-test")(tokens))
    loss, _ = model.loss(tokens, tokens)
    loss.backward()
    assert model.blocks[0].ffn.up.weight.grad.abs().sum() > 0


def test_its_formula_is_what_torch_has() -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(own_op.mish(x), torch.nn.functional.mish(x))
    np.testing.assert_allclose(own_op.formula(x.numpy()), torch.nn.functional.mish(x).numpy())
