"""Training on two gloo ranks, all cases in one pair of processes, for starting one takes seconds.

The functions here run in the child processes; `tests/distributed` looks at what they leave.
"""

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import conadv
from conadv.adversary.overlap import DeferredAllReduce
from support.loops import (
    ATTACK,
    SCHEDULES,
    batches,
    cross_entropy,
    network,
    pending,
    sgd,
    train_by_itself,
)

WORLD = 2
STEPS = 5
SIZE = 6
"""Images of one rank in one round."""

WRAPPERS: dict[str, dict[str, Any]] = {
    "default": {},
    "static": {"static_graph": True},
    "bucket view": {"gradient_as_bucket_view": True},
    "finds unused": {"find_unused_parameters": True},
    "static, finds unused": {"static_graph": True, "find_unused_parameters": True},
}
BY_ITSELF = ("default", "bucket view", "finds unused")
"""The wrappers under which rounds are collected by their backward pass."""
FORWARDS = ("joint", "separate")


def global_batches(count: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return batches(count, size=WORLD * SIZE, seed=11)


def part_of(rank: int, count: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = slice(rank * SIZE, (rank + 1) * SIZE)
    return [(images[rows], labels[rows]) for images, labels in global_batches(count)]


def result_of(model: nn.Module, adversary: conadv.Adversary, **more: Any) -> dict[str, Any]:
    return {
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "pending": pending(adversary),
        **more,
    }


def train(
    rank: int, schedule: str, wrapper: str = "default", forward: str = "auto", overlap: bool = False
) -> dict[str, Any]:
    model = network()
    ddp = DistributedDataParallel(model, **WRAPPERS[wrapper])
    hook = DeferredAllReduce(ddp) if overlap else None
    adversary = conadv.Adversary(ddp, ATTACK, SCHEDULES[schedule](), forward=forward)
    optimizer = sgd(model)
    for images, labels in adversary.batches(part_of(rank)):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        if hook is not None:
            hook.wait()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return result_of(model, adversary, compute=adversary.compute)


def by_itself(rank: int, schedule: str, wrapper: str, how: str) -> dict[str, Any]:
    """Collected at the end of the backward, the batch mixed by the adversary or not."""
    model = network()
    ddp = DistributedDataParallel(model, **WRAPPERS[wrapper])
    adversary = conadv.Adversary(ddp, ATTACK, SCHEDULES[schedule](), auto_collect=True)
    train_by_itself(adversary, part_of(rank), how)
    return result_of(model, adversary, compute=adversary.compute)


def accumulate(rank: int, schedule: str) -> dict[str, Any]:
    """Every batch in a micro-batch of four and one of two; the first without communication."""
    model = network()
    ddp = DistributedDataParallel(model)
    adversary = conadv.Adversary(ddp, ATTACK, SCHEDULES[schedule]())
    optimizer, micro = sgd(model), []
    for images, labels in part_of(rank):
        micro += zip(images.split(4), labels.split(4), strict=True)
    for number, (images, labels) in enumerate(adversary.batches(micro)):
        with ddp.no_sync() if number % 2 == 0 else nullcontext():
            fraction = len(images) / SIZE
            adversary.loss(images, labels, cross_entropy, fraction=fraction).backward()
        adversary.collect()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return result_of(model, adversary)


def skip_on_one_rank(rank: int, schedule: str) -> dict[str, Any]:
    """A rank that leaves a round out has no copies in the next; the other one has."""
    model = network()
    adversary = conadv.Adversary(DistributedDataParallel(model), ATTACK, SCHEDULES[schedule]())
    optimizer, had_copies = sgd(model), []
    for number, (images, labels) in enumerate(adversary.batches(part_of(rank))):
        adversary.loss(images, labels, cross_entropy).backward()
        had_copies.append(adversary.diagnostics.adversarial_loss is not None)
        if number == 2 and rank == 1:
            adversary.skip()
        else:
            adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return result_of(model, adversary, had_copies=had_copies)


def gathered(rank: int, schedule: str) -> dict[str, Any]:
    """Two sessions: an unbroken one, and one that goes on from what rank 0 has saved."""

    def session() -> tuple[nn.Module, conadv.Adversary, torch.optim.Optimizer]:
        model = network()
        return (
            model,
            conadv.Adversary(DistributedDataParallel(model), ATTACK, SCHEDULES[schedule]()),
            sgd(model),
        )

    def steps(parts: Any, data: Any) -> None:
        _, adversary, optimizer = parts
        for number, (images, labels) in enumerate(data):
            if adversary.reads_ahead and number + adversary.reads_ahead < len(data):
                adversary.peek(*data[number + adversary.reads_ahead])
            adversary.loss(images, labels, cross_entropy).backward()
            adversary.collect()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    data, one, two = part_of(rank), session(), session()
    steps(one, data[:3])
    saved = [one[1].gathered_state_dict()]
    dist.broadcast_object_list(saved, src=0)  # as a file would carry it
    two[0].load_state_dict(one[0].state_dict())
    two[2].load_state_dict(copy.deepcopy(one[2].state_dict()))
    two[1].load_gathered(saved[0])
    steps(one, data[3:])
    steps(two, data[3:])
    same = all(torch.equal(a, b) for a, b in zip(pending(one[1]), pending(two[1]), strict=True))
    return result_of(two[0], two[1], same=same, unbroken=result_of(*one[:2])["parameters"])


def refuse(rank: int) -> dict[str, Any]:
    ddp = DistributedDataParallel(network(), find_unused_parameters=True)
    try:
        conadv.Adversary(ddp, ATTACK, forward="separate")
    except ValueError as error:
        return {"message": str(error)}
    return {"message": ""}


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """Name -> function of the rank, in the same order on every rank; for `gloo.run_cases`."""
    assert world == WORLD
    found: dict[tuple[str, ...], Any] = {}
    for schedule in SCHEDULES:
        for wrapper in WRAPPERS:
            for forward in FORWARDS:
                if wrapper == "finds unused" and forward == "separate":
                    continue
                found["train", schedule, wrapper, forward] = (
                    lambda r, a=(schedule, wrapper, forward): train(r, *a)
                )
        for wrapper in BY_ITSELF:
            for how in ("loss", "mix"):
                found["by itself", schedule, wrapper, how] = lambda r, a=(schedule, wrapper, how): (
                    by_itself(r, *a)
                )
        found["auto", schedule] = lambda r, s=schedule: train(r, s)
        found["overlap", schedule] = lambda r, s=schedule: train(r, s, "bucket view", overlap=True)
        found["accumulate", schedule] = lambda r, s=schedule: accumulate(r, s)
        found["gathered", schedule] = lambda r, s=schedule: gathered(r, s)
        found["skip", schedule] = lambda r, s=schedule: skip_on_one_rank(r, s)
    found["refuse",] = refuse
    return found
