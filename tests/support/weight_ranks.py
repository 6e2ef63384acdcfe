"""Copies of weights on two gloo ranks; `tests/weights/test_ddp.py` looks at what is left."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from conadv.adversary.overlap import DeferredAllReduce
from conadv.weights import WeightAdversary, WeightAttack
from support.loops import batches, cross_entropy, network, sgd
from support.ranks import WRAPPERS
from support.weights import ATTACK, SCHEDULES, cut

WORLD = 2
SIZE = 8
"""Images of one rank in one step: two micro-batches."""
DATA = batches(4, size=WORLD * SIZE, seed=11)


def train(
    rank: int,
    schedule: str,
    wrapper: str = "default",
    per_round: int = SIZE,
    overlap: bool = False,
    skipped: int | None = None,
    attack: WeightAttack = ATTACK,
    loose: bool = False,
) -> dict[str, Any]:
    model = network()
    ddp = DistributedDataParallel(model, **WRAPPERS[wrapper])
    hook = DeferredAllReduce(ddp) if overlap else None
    rounds = SIZE // per_round
    adversary = WeightAdversary(ddp, attack, SCHEDULES[schedule](), rounds=rounds)
    optimizer = sgd(model)
    rows = slice(rank * SIZE, (rank + 1) * SIZE)
    pieces = [p for images, labels in DATA for p in cut(images[rows], labels[rows], per_round)]
    seen = []
    for number, (images, labels) in enumerate(adversary.batches(pieces)):
        adversary.progress = number / len(pieces)
        last = (number + 1) % rounds == 0
        alone = nullcontext() if last else ddp.no_sync()
        with nullcontext() if loose else alone:
            loss = adversary.loss(images, labels, cross_entropy, fraction=1 / rounds)
            if not loose:
                loss.backward()
        if loose:  # no_sync that does not wrap the forward
            with alone:
                loss.backward()
        seen.append(adversary.diagnostics.images)
        if number == skipped and rank == 1:
            adversary.skip()
        else:
            adversary.collect()
        if last:
            if hook is not None:
                hook.wait()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "state": adversary.state_dict(),
        "seen": seen,
    }


def refusals(rank: int) -> dict[str, str]:
    from torch.distributed.fsdp import fully_shard

    said = {}
    sharded = network()
    fully_shard(sharded)
    models = {
        "sharded": sharded,
        "unused": DistributedDataParallel(network(), find_unused_parameters=True),
    }
    for name, model in models.items():
        try:
            WeightAdversary(model, ATTACK)
        except ValueError as error:
            said[name] = str(error)
    return said


def unsplit_with_unused(rank: int) -> dict[str, Any]:
    """find_unused_parameters sees the last forward only: it must be one through everything."""
    model = network(split=False)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    adversary, optimizer = WeightAdversary(ddp, ATTACK), sgd(model)
    rows = slice(rank * SIZE, (rank + 1) * SIZE)
    for images, labels in DATA:
        adversary.loss(images[rows], labels[rows], cross_entropy).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"parameters": {n: p.detach().clone() for n, p in model.named_parameters()}}


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `gloo.run_cases`."""
    assert world == WORLD
    found: dict[tuple[str, ...], Any] = {
        ("refusals",): refusals,
        ("unused",): unsplit_with_unused,
    }
    for schedule in SCHEDULES:
        found["train", schedule] = lambda r, s=schedule: train(r, s)
        found["accumulate", schedule] = lambda r, s=schedule: train(r, s, per_round=4)
    for schedule in ("sequential", "recycled", "lookahead"):
        for wrapper in ("static", "bucket view"):
            found[wrapper, schedule] = lambda r, s=schedule, w=wrapper: train(r, s, w)
        found["overlap", schedule] = lambda r, s=schedule: train(r, s, "bucket view", overlap=True)
        found["skip", schedule] = lambda r, s=schedule: train(r, s, skipped=1)
        found["loose", schedule] = lambda r, s=schedule: train(r, s, per_round=4, loose=True)
    centred = WeightAttack(0.05, micro_batch=4, dtype=torch.float32, centred=True)
    found["centred", "sequential"] = lambda r: train(r, "sequential", attack=centred)
    return found
