"""Training on perturbed embeddings on two gloo ranks; `tests/adversary` looks at the results."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import conadv
from support import text

WORLD = 2
SIZE = 3
"""Sentences of one rank in one round."""
LENGTHS = (4, 7, 5)
SCHEDULES = ("sequential", "recycled")
HOW = ("collect", "by itself", "mix", "finds unused")


def global_batches() -> list[tuple[dict, torch.Tensor]]:
    return text.batches(LENGTHS, size=WORLD * SIZE)


def rows(batch: tuple[dict, torch.Tensor], part: slice) -> tuple[dict, torch.Tensor]:
    inputs, labels = batch
    return {name: value[part] for name, value in inputs.items()}, labels[part]


def part_of(rank: int) -> list[tuple[dict, torch.Tensor]]:
    part = slice(rank * SIZE, (rank + 1) * SIZE)
    return [rows(batch, part) for batch in global_batches()]


def result(model: torch.nn.Module, adversary: conadv.Adversary) -> dict[str, Any]:
    assert adversary.preview is not None
    return {"weights": model.state_dict(), "perturbation": adversary.preview[1]}


def train(rank: int, schedule: str, how: str) -> dict[str, Any]:
    model = text.text()
    ddp = DistributedDataParallel(model, find_unused_parameters=how == "finds unused")
    if how != "mix":
        options = {"wrapped": ddp, "auto_collect": how == "by itself"}
        return result(model, text.train(model, part_of(rank), schedule, **options))
    adversary = conadv.Adversary(ddp, text.ATTACK, schedule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, labels in part_of(rank):
        mixed = adversary.mix(inputs, labels, cross_entropy)
        cross_entropy(ddp(**mixed.images), mixed.labels).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    return result(model, adversary)


def accumulate(rank: int) -> dict[str, Any]:
    """Each batch in a micro-batch of two and one of one; the first without communication."""
    model = text.text()
    ddp = DistributedDataParallel(model)
    adversary = conadv.Adversary(ddp, text.ATTACK, "sequential")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in part_of(rank):
        for part in (slice(0, 2), slice(2, 3)):
            inputs, labels = rows(batch, part)
            with ddp.no_sync() if part.start == 0 else nullcontext():
                share = len(labels) / SIZE
                adversary.loss(inputs, labels, cross_entropy, fraction=share).backward()
            adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    return result(model, adversary)


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `support.gloo.run_cases`."""
    found: dict[tuple[str, ...], Any] = {("accumulate",): accumulate}
    for schedule in SCHEDULES:
        for how in HOW:
            found[schedule, how] = lambda rank, a=(schedule, how): train(rank, *a)
    return found
