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
from multiway.specs.data_folders import wiring_files

# A history and routed experts, and two passes over the blocks. Lanes and others are slow.
SHORT = [("mudd-moe-test", "lm"), ("beit3-test", "retrieval")]


def cases() -> list[Case]:
    """Every test member of the zoo with each head that can be trained: all wirings and routings."""
    return [(n, h) for n, h in MEMBERS if "loss" in program_names(mw.load(n).for_head(h))]


def test_short(tmp_path: Path) -> None:
    assert run(SHORT, tmp_path) == ""


@pytest.mark.slow
def test_every_member(tmp_path: Path) -> None:
    wirings = {mw.load(name).wiring.use for name, _ in cases()}
    assert wirings >= set(wiring_files())
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
