"""Names and shapes of the released checkpoints, both ways, without a single number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import multiway as mw
from multiway.runtime.checkpoints.layout import held_shapes

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "manifests"
MANIFESTS = sorted(SHARED.glob("*.json"))
MUDD = {
    "muddformer_2p8b": "muddformer-2.8b",
    "muddpythia_1p4b": "mudd-pythia-1.4b",
    "muddpythia_2p8b": "mudd-pythia-2.8b",
}
VQA = {"480": "vqa", "384": "vqa_384", "768": "vqa_768"}


def entry_of(manifest: str) -> tuple[str, str]:
    """(zoo entry, head) of a manifest's file name."""
    if manifest in MUDD:
        return MUDD[manifest], "lm"
    _, size, _, resolution, task = manifest.split("_")
    return f"beit3-{size}", VQA[resolution] if task == "vqav2" else task


def test_the_manifests_are_there() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no recorded manifests at {SHARED}")
    assert len(MANIFESTS) == 16


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_names_and_shapes_map_both_ways(path: Path) -> None:
    data = json.loads(path.read_text())
    entry, head = entry_of(path.stem)
    model = mw.compile(entry, head=head, device="meta")
    own = dict(model.named_parameters())
    pairs, unknown = mw.rename_table(model.spec).pairs(own)
    assert unknown == []
    assert {pair.theirs: list(held_shapes(pair, own)[0]) for pair in pairs} == dict(
        data["state_dict"]
    )
    assert sorted(name for pair in pairs for name in pair.ours) == sorted(own)
    assert sum(p.numel() for p in model.parameters()) == data["num_parameters"]
