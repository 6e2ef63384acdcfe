"""Adversarial training of models in fully_shard on two gloo ranks, and the same under DDP."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import conadv
from conadv.optim import LARS, param_groups
from support import text, text_ranks
from support.gloo import Name
from support.loops import ATTACK, SCHEDULES, batches, cross_entropy, network, sgd, train_by_itself

WORLD = 2
STEPS = 4
SIZE = 6
"""Images of one rank in one round."""
EVERY_RANK_ALIKE = ("vanilla", "sequential", "lookahead", "recycled")
"""Schedules in which two ranks prepare the copies that one process with all images prepares."""

Weights = dict[str, torch.Tensor]


def sharded(model: nn.Sequential) -> nn.Sequential:
    """The convolutions on their own, the rest with the root; before the optimizer is made."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            fully_shard(layer)
    fully_shard(model)
    return model


def in_ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def whole(model: nn.Module) -> Weights:
    weights = {}
    for name, p in model.named_parameters():
        full = p.full_tensor() if isinstance(p, DTensor) else p
        weights[name.removeprefix("module.")] = full.detach().clone()
    return weights


def global_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return batches(STEPS, size=WORLD * SIZE, seed=11)


def part_of(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = slice(rank * SIZE, (rank + 1) * SIZE)
    return [(images[rows], labels[rows]) for images, labels in global_batches()]


def train(
    data: list[tuple[torch.Tensor, torch.Tensor]],
    schedule: str,
    wrap: Callable[[Any], nn.Module] | None,
    forward: Any = "auto",
    lars: bool = False,
) -> Weights:
    """Weights after a step on each batch; without `wrap` in one process."""
    model = wrap(network()) if wrap else network(group_size=SIZE)
    adversary = conadv.Adversary(model, ATTACK, SCHEDULES[schedule](), forward=forward)
    optimizer = LARS(param_groups(model, 1e-3), lr=5.0) if lars else sgd(model)
    for images, labels in adversary.batches(data):
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        if wrap is sharded:  # nothing that the attack gathered is left
            assert all(isinstance(p, DTensor) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return whole(model)


def compared(rank: int, schedule: str, **options: Any) -> dict[str, Weights]:
    """Sharded and under DDP, the same images on each rank."""
    data = part_of(rank)
    return {
        "fully_shard": train(data, schedule, sharded, **options),
        "ddp": train(data, schedule, in_ddp, **options),
    }


def accumulate(rank: int, schedule: str, wrap: Callable[[Any], nn.Module]) -> Weights:
    """Every batch in a micro-batch of four and one of two.

    fully_shard leaves out the communication of the first; under DDP every one communicates, which
    gives the same sums.
    """
    model: Any = wrap(network(group_size=2))
    adversary = conadv.Adversary(model, ATTACK, SCHEDULES[schedule](), forward="joint")
    optimizer, micro = sgd(model), []
    for images, labels in part_of(rank):
        micro += zip(images.split(4), labels.split(4), strict=True)
    for number, (images, labels) in enumerate(adversary.batches(micro)):
        if wrap is sharded:
            model.set_requires_gradient_sync(number % 2 == 1)
        fraction = len(images) / SIZE
        adversary.loss(images, labels, cross_entropy, fraction=fraction).backward()
        adversary.collect()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return whole(model)


def by_itself(rank: int, schedule: str, how: str) -> Weights:
    """Collected at the end of the backward, the batch mixed by the adversary or not."""
    model = sharded(network())
    adversary = conadv.Adversary(model, ATTACK, SCHEDULES[schedule](), auto_collect=True)
    train_by_itself(adversary, part_of(rank), how)
    return whole(model)


def of_text(rank: int, schedule: str) -> Weights:
    """Embeddings are perturbed, the table being sharded on its own."""
    model = text.text()
    for layer in (model.table, model.inner):
        fully_shard(layer)
    fully_shard(model)
    text.train(model, text_ranks.part_of(rank), schedule)
    return whole(model)


def skip_on_one_rank(rank: int) -> dict[str, Any]:
    """A rank that leaves a round out has no copies in the next; the other one has."""
    model = sharded(network())
    adversary = conadv.Adversary(model, ATTACK, "recycled")
    optimizer, had_copies = sgd(model), []
    for number, (images, labels) in enumerate(part_of(rank)):
        adversary.loss(images, labels, cross_entropy).backward()
        had_copies.append(adversary.diagnostics.adversarial_loss is not None)
        if (number, rank) == (1, 1):
            adversary.skip()
        else:
            adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"weights": whole(model), "had copies": had_copies}


def attack_alone(rank: int) -> dict[str, Any]:
    """One attack: what it leaves behind."""
    model: Any = sharded(network())
    images, labels = part_of(rank)[0]
    attack = conadv.Attack(ATTACK.epsilon, ATTACK.mean, ATTACK.std, branch="adversarial")
    made = attack(model, images, labels, cross_entropy)
    return {
        "changed": not torch.equal(made, images),
        "sharded": all(isinstance(p, DTensor) for p in model.parameters()),
        "gradients": sum(p.grad is not None for p in model.parameters()),
    }


def cases(world: int) -> dict[Name, Callable[[int], Any]]:
    """Name -> function of the rank, in the same order on every rank."""
    found: dict[Name, Callable[[int], Any]] = {}
    for schedule in SCHEDULES:
        for forward in ("joint", "separate"):
            found["compared", schedule, forward] = lambda r, s=schedule, f=forward: compared(
                r, s, forward=f
            )
        found["accumulate", schedule] = lambda r, s=schedule: {
            "fully_shard": accumulate(r, s, sharded),
            "ddp": accumulate(r, s, in_ddp),
        }
        for how in ("loss", "mix"):
            found["by itself", schedule, how] = lambda r, a=(schedule, how): by_itself(r, *a)
    for schedule in text_ranks.SCHEDULES:
        found["text", schedule] = lambda r, s=schedule: of_text(r, s)
    for schedule in EVERY_RANK_ALIKE:
        found["alone", schedule] = lambda r, s=schedule: train(part_of(r), s, sharded)
        found["lars", schedule] = lambda r, s=schedule: train(part_of(r), s, sharded, lars=True)
    found["skip",] = skip_on_one_rank
    found["attack",] = attack_alone
    return found
