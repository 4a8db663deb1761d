"""Tensor for tensor as the originals: every recorded case, and what the command says."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).resolve().parents[1] / "parity.py"
SHARED = SCRIPT.parents[1].parent / "shared" / "golden"
WIRINGS = SHARED.parent / "golden_wirings"
CASES = sorted(path.parent for root in (SHARED, WIRINGS) for path in root.glob("*/*/config.json"))
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded cases at {SHARED}")


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    found = importlib.util.spec_from_file_location("parity", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["parity"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A recorded case that may be changed."""
    return Path(shutil.copytree(SHARED / "muddpythia" / "tiny", tmp_path / "case"))


def configure(case: Path, **values: Any) -> None:
    path = case / "config.json"
    path.chmod(0o644)
    data = json.loads(path.read_text())
    data["config"] |= values
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("folder", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_recorded_case(parity: Any, folder: Path) -> None:
    case = parity.run_case(folder)
    assert case.misses == []
    assert case.checked > 50


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"stack_hidden": True}, "stack_hidden"),
        ({"dense_type": "l"}, "dense_type"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"new_option": 1}, "new_option"),
    ],
)
def test_what_multiway_lacks_is_said(
    parity: Any, case: Path, values: dict[str, Any], key: str, capsys: Any
) -> None:
    configure(case, **values)
    assert parity.main([str(case)]) == 2
    assert f"unsupported {key}" in capsys.readouterr().out


def test_a_changed_option_is_a_miss(parity: Any, case: Path, capsys: Any) -> None:
    configure(case, rope_base=9000)
    assert parity.main([str(case)]) == 1
    assert "MISS" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["layers.1.attention.wq.weight", "dense_bs.2"])
def test_a_changed_weight_is_a_miss(parity: Any, case: Path, name: str, capsys: Any) -> None:
    tensors = load_file(case / "weights.safetensors")
    tensors[name] = tensors[name] + 1e-2 * torch.randn_like(tensors[name])
    (case / "weights.safetensors").unlink()
    save_file(tensors, case / "weights.safetensors")
    assert parity.main([str(case)]) == 1
    assert "logits is off by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"connection": "other"}, "connection"),
        ({"connection_kwargs": {"n": 2, "lanes": 3}}, "lanes"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_a_wiring_lacks_is_said(
    parity: Any, tmp_path: Path, values: dict[str, Any], key: str, capsys: Any
) -> None:
    case = Path(shutil.copytree(WIRINGS / "hc" / "static_n2", tmp_path / "case"))
    configure(case, **values)
    assert parity.main([str(case)]) == 2
    assert f"unsupported {key}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("hc/static_n2", {"rope_theta": 9000.0}),
        ("mhc/n3", {"connection_kwargs": {"n": 3, "sinkhorn_iters": 2}}),
        ("muddformer/prepost", {"mlp_ratio": 2.1}),
        ("denseformer/dilation1", {"connection_kwargs": {"dilation": 2}}),
        ("attnres/full", {"connection_kwargs": {"heads": 2, "block_size": 0}}),
    ],
)
def test_a_changed_wiring_is_a_miss(
    parity: Any, tmp_path: Path, case: str, options: dict[str, Any], capsys: Any
) -> None:
    folder = Path(shutil.copytree(WIRINGS / case, tmp_path / "case"))
    configure(folder, **options)
    assert parity.main([str(folder)]) == (2 if "mlp_ratio" in options else 1)


def test_a_missing_file_is_no_traceback(parity: Any, tmp_path: Path, capsys: Any) -> None:
    assert parity.main([str(tmp_path)]) == 2
    assert parity.main([]) == 2
