"""What several gloo ranks draw for an attack, with `Adversary.key` and without."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

import conadv
from conadv.trainer.distributed.world import leave
from support.loops import EPSILON, MEAN, STD, batches, cross_entropy, network, sgd
from support.waiting import wait_for_all

ROUNDS = 3
RANDOM = conadv.Attack(EPSILON, MEAN, STD, random_start=1.0, target="random")


def copies_of(keys: list[int | None], schedule: str = "sequential", seed: int = 0) -> torch.Tensor:
    """The copies of each round, over the same images and weights."""
    model = network()
    adversary = conadv.Adversary(model, RANDOM, schedule, seed=seed)
    optimizer, found = sgd(model, lr=0.0), []
    images, labels = batches(1)[0]
    for key in keys:
        adversary.key = key
        adversary.peek(images, labels)
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(adversary.preview[1] if adversary.preview else torch.zeros_like(images))
    return torch.stack(found)


def _rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    found = {"keyed": copies_of([7, 8, 7]), "by rank": copies_of([None] * ROUNDS)}
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    leave()


def on_ranks(world: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What each rank drew."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = torch.multiprocessing.spawn(_rank_main, (world, str(folder)), world, join=False)
    wait_for_all(context, 100)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
