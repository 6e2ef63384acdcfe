"""The plain hand-written loop that every integration has to equal, and its settings."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import conadv
from support.loops import ATTACK, batches, cross_entropy, network, pending, sgd

STEPS = 10
SIZE = 4
"""Images of a micro-batch."""
CLIP = 0.5
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "accumulation": {"accumulation": 2},
    "clipping": {"clip": CLIP},
    "sequential": {"schedule": "sequential"},
}


def data(accumulation: int = 1, ranks: int = 1) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of all ranks; rank r of n takes [r::n]."""
    return batches(STEPS * accumulation * ranks, size=SIZE, seed=5)


def plain_loop(
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    *,
    model: nn.Module | None = None,
    schedule: str = "recycled",
    bf16: bool = False,
    accumulation: int = 1,
    clip: float | None = None,
    ddp: bool = False,
    criterion: Any = cross_entropy,
    forward: Any = "joint",
) -> tuple[nn.Module, conadv.Adversary]:
    """Train by hand."""
    model = network() if model is None else model
    wrapped = DistributedDataParallel(model) if ddp else model
    adversary = conadv.Adversary(wrapped, ATTACK, schedule, forward=forward)
    optimizer = sgd(model)
    for number, (images, labels) in enumerate(adversary.batches(micro_batches), 1):
        last = number % accumulation == 0
        with wrapped.no_sync() if ddp and not last else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = adversary.loss(images, labels, criterion, fraction=1 / accumulation)
            loss.backward()
        adversary.collect()
        if last:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, adversary


def outcome(model: nn.Module, adversary: conadv.Adversary) -> dict[str, Any]:
    """What two ways of training have to agree in, bit for bit."""
    return {"weights": model.state_dict(), "pending": pending(adversary.schedule)}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def act_as_rank(rank: int, world: int) -> None:
    """The environment that torchrun gives a process; its group exists already."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})


def shared_folder() -> Path:
    """A new folder, the same on every rank."""
    name = [tempfile.mkdtemp(prefix="conadv-")]
    dist.broadcast_object_list(name)
    return Path(name[0])
