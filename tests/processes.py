"""What each of two processes does in test_processes.py: every case by DDP and by FSDP2, beside one
process that adds up the gradients of both halves. Not a test: processes import it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import multiway as mw
from multiway.runtime.measure.sides import Work, sample_inputs
from multiway.runtime.model import Model

WORLD = 2
STEPS = 3
Case = tuple[str, str]
"""A name of the zoo and a head."""
Loss = Callable[[Mapping[str, Tensor]], Tensor]


def work(rank: int, folder: str, cases: Sequence[Case]) -> None:
    """Runs all cases as one of the processes. Writes what failed into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    failed = []
    for name, head in cases:
        for way in (distributed, searching, sharded):
            try:
                check(way, name, head, rank)
            except Exception:
                failed.append(f"{name}, {head}, {way.__name__}: {traceback.format_exc(limit=-3)}")
    Path(folder, f"failed.{rank}").write_text("\n".join(failed))
    dist.destroy_process_group()


def distributed(model: Model) -> Loss:
    """DDP, which gets the loss as a call of the model."""
    for name in model.unused("loss"):
        model.get_parameter(name).requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    return lambda given: wrapped(program="loss", **given)[0]


def searching(model: Model) -> Loss:
    """DDP that looks for what gets no gradient."""
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    return lambda given: wrapped(program="loss", **given)[0]


def sharded(model: Model) -> Loss:
    """FSDP2, every block and the rest."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return lambda given: model.loss(**given)[0]


def check(way: Callable[[Model], Loss], name: str, head: str, rank: int) -> None:
    alone, model = (mw.compile(name, head=head, dtype=torch.float64, seed=1) for _ in range(2))
    halves = [[batch(alone, WORLD * step + i) for i in range(WORLD)] for step in range(STEPS)]
    loss = way(model)
    whole = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    parts = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for given in halves:
        whole.zero_grad()
        parts.zero_grad()
        for i, half in enumerate(given):
            torch.manual_seed(i)  # routers may draw
            (alone.loss(**half)[0] / WORLD).backward()
        torch.manual_seed(rank)
        loss(given[rank]).backward()
        same(alone, model, lambda p: p.grad)
        whole.step()
        parts.step()
        same(alone, model, lambda p: p.detach())


def batch(model: Model, seed: int) -> dict[str, Tensor]:
    return sample_inputs(model, "loss", Work(batch=2, length=6, train=True, seed=seed))


def same(alone: Model, model: Model, of: Callable[[Tensor], Tensor | None]) -> None:
    for (name, mine), theirs in zip(alone.named_parameters(), model.parameters(), strict=True):
        want, found = of(mine), of(theirs)
        if found is not None and hasattr(found, "full_tensor"):
            found = found.full_tensor()
        if want is None:
            assert found is None or not found.any(), name
        else:
            assert found is not None, f"{name} has no gradient"
            torch.testing.assert_close(
                found, want, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )
