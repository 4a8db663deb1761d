"""Training in several processes: gradients and steps are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from members import MEMBERS
from processes import WORLD, Case, work
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.specs.reading.merge import wiring_names

# One for each way in which blocks differ: none, sums over depth, attention over depth, lanes,
# routed experts, two passes over the blocks.
SHORT = ["prenorm-test", "mudd-pythia-test", "wiring attnres", "wiring hc", "mixtral-test"]
SHORT += ["beit3-test, retrieval"]


def cases() -> list[Case]:
    """Every wiring on one body, and every test member with each head that can be trained."""
    wirings = [
        (f"wiring {name}", {"multiway": 1, "name": "wired", "extends": "prenorm-test"} | use, "lm")
        for name in wiring_names()
        for use in [{"wiring": {"use": name}}]
    ]
    members = [
        (name if len(mw.load(name).heads) == 1 else f"{name}, {head}", name, head)
        for name, head in MEMBERS
        if "loss" in program_names(mw.load(name).for_head(head))
    ]
    return [*wirings, *members]


def test_short(tmp_path: Path) -> None:
    chosen = [case for case in cases() if case[0] in SHORT]
    assert len(chosen) == len(SHORT)
    assert run(chosen, tmp_path) == ""


@pytest.mark.slow
def test_every_wiring_and_member(tmp_path: Path) -> None:
    assert run(cases(), tmp_path) == ""


def run(chosen: list[Case], folder: Path) -> str:
    multiprocessing.spawn(work, (str(folder), chosen), nprocs=WORLD)
    return "\n".join(Path(folder, f"failed.{rank}").read_text() for rank in range(WORLD)).strip()


def test_an_inference_program_is_refused_by_name(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model: Any = mw.compile("pythia-test", mode="inference")
        fully_shard(model.blocks[0], mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(mw.MultiwayError, match="for inference"):
            model(torch.arange(4)[None])
    finally:
        dist.destroy_process_group()
