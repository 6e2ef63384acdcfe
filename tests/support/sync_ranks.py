"""Normalisation over all ranks, copies of weights, and ranks that differ in how many they have."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import conadv
from conadv.weights import WeightAdversary, WeightAttack
from support.loops import ATTACK as IMAGE_ATTACK
from support.loops import batches, cross_entropy, network, sgd
from support.weights import ATTACK, SCHEDULES

WORLD = 2
SIZE = 8
HALF = {
    "sequential": lambda: conadv.weights.Sequential(share=0.5),
    "sequential, mixed": lambda: conadv.weights.Sequential(share=0.5, weight=0.5),
    "recycled": lambda: conadv.weights.Recycled(share=0.5),
    "lookahead": lambda: conadv.weights.Lookahead(share=0.5),
    "slot": lambda: conadv.weights.Slot(share=0.5),
    "noise": lambda: conadv.weights.Noise(share=0.5),
}
"""One micro-batch on each rank, so that a half is one rank's, or none's."""


class SumOverRanks(torch.autograd.Function):
    """Waits for the other ranks in the forward and in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class OverRanks(nn.SyncBatchNorm):
    """SyncBatchNorm takes no CPU tensors; this does, and waits for other ranks as often."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        ones = torch.ones(1, dtype=x.dtype).expand(len(x) * x[0, 0].numel())
        sums = [x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), ones.sum().view(1)]
        total = SumOverRanks.apply(torch.cat(sums))
        mean, square = (total[:-1] / total[-1]).view(2, 1, -1, 1, 1)
        if self.track_running_stats:
            self.running_mean.lerp_(mean.detach().flatten(), self.momentum)
        scale = self.weight.view(1, -1, 1, 1) / (square - mean.square() + self.eps).sqrt()
        return (x - mean) * scale + self.bias.view(1, -1, 1, 1)


def over_ranks(split: bool = False) -> nn.Module:
    model = network(split=False)
    for place in (1, 4):
        model[place] = OverRanks(model[place].num_features)
    return conadv.split_norms(model) if split else model


def train(
    rank: int,
    make: Callable[[], Any],
    attack: WeightAttack = ATTACK,
    sizes: tuple[int, int] = (SIZE, SIZE),
    spoil: Callable[[WeightAdversary, int], bool] = lambda adversary, number: False,
    of_images: str | None = None,
    model: nn.Module | None = None,
    forced: bool = False,
) -> dict[str, Any]:
    """`spoil` is called between backward and collect, and says whether to skip instead."""
    model = over_ranks(of_images is not None) if model is None else model
    with mock.patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle"):
        ddp = DistributedDataParallel(model)  # which refuses the real one on a CPU too
    inner = None if of_images is None else conadv.Adversary(ddp, IMAGE_ATTACK, of_images)
    adversary, optimizer = WeightAdversary(ddp, attack, make(), adversary=inner), sgd(model)
    if forced:
        adversary._passes.in_step._group = ddp.process_group
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    data = [(images[rows], labels[rows]) for images, labels in batches(4, size=sum(sizes))]
    seen = []
    for number, (images, labels) in enumerate(adversary.batches(data)):
        adversary.loss(images, labels, cross_entropy).backward()
        seen.append(adversary.diagnostics.images)
        if spoil(adversary, number):
            adversary.skip()
        else:
            adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "seen": seen,
        "random": torch.get_rng_state(),
    }


def overflows(rank: int) -> Callable[[WeightAdversary, int], bool]:
    """One of rank 1's gradients is not finite."""

    def spoil(adversary: WeightAdversary, number: int) -> bool:
        if rank == 1 and number == 1:
            next(iter(adversary._round.tapped.values())).gradient.fill_(torch.inf)
        return False

    return spoil


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `gloo.run_cases`."""
    assert world == WORLD and dist.get_world_size() == WORLD
    whole = WeightAttack(0.05, centred=False)
    branch = WeightAttack(0.05, micro_batch=4, branch="adversarial")
    found: dict[tuple[str, ...], Any] = {}
    for name, make in HALF.items():
        found["share", name] = lambda r, m=make: train(r, m, whole)
    for name in ("sequential", "recycled", "lookahead", "slot"):
        make = SCHEDULES[name]
        found["skip", name] = lambda r, m=make: train(
            r, m, spoil=lambda adversary, number: r == 1 and number == 1
        )
        found["ragged", name] = lambda r, m=make: train(r, m, sizes=(9, 8))
        found["branch", name] = lambda r, m=make: train(
            r, m, branch, (9, 8), model=over_ranks(split=True)
        )
    for name in ("recycled", "slot"):
        found["overflow", name] = lambda r, m=SCHEDULES[name]: train(r, m, spoil=overflows(r))
    found["both", "recycled"] = lambda r: train(r, HALF["recycled"], whole, of_images="recycled")
    for forced in ("free", "forced"):
        for name, make in HALF.items():
            found[forced, name] = lambda r, m=make, f=forced: train(
                r, m, whole, model=network(dropout=0.2), forced=f == "forced"
            )
    return found
