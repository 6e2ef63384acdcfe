"""What several tests of the copies of weights share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conadv.weights import (
    Lookahead,
    Noise,
    Recycled,
    Sequential,
    Slot,
    WeightAdversary,
    WeightAttack,
    WeightSchedule,
)
from support.loops import batches, cross_entropy, network, sgd

ATTACK = WeightAttack(rho=0.05, micro_batch=4, dtype=torch.float32)
SCHEDULES: dict[str, Callable[[], WeightSchedule]] = {
    "none": WeightSchedule,
    "sequential": Sequential,
    "sequential, mixed": lambda: Sequential(weight=0.4),
    "recycled": Recycled,
    "recycled, a share": lambda: Recycled(share=0.5, weight=0.3),
    "recycled, every second step": lambda: Recycled(every=2),
    "lookahead": Lookahead,
    "lookahead, every second step": lambda: Lookahead(every=2),
    "lookahead, mixed": lambda: Lookahead(weight=0.5),
    "slot": Slot,
    "slot, mixed": lambda: Slot(weight=0.5),
    "noise": Noise,
}
"""What every contract test runs over."""


def cut(images: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def train(
    make: Callable[[], WeightSchedule],
    data: list[tuple[Tensor, Tensor]],
    attack: WeightAttack = ATTACK,
    per_round: int | None = None,
    model: Any = None,
    **options: Any,
) -> tuple[Any, WeightAdversary]:
    """The loop of the page; a batch in rounds of `per_round` images, which add up."""
    model = network() if model is None else model
    size = per_round or len(data[0][0])
    rounds = len(data[0][0]) // size
    adversary = WeightAdversary(model, attack, make(), rounds=rounds, **options)
    optimizer = sgd(model)
    pieces = [piece for images, labels in data for piece in cut(images, labels, size)]
    for number, (images, labels) in enumerate(adversary.batches(pieces)):
        adversary.progress = number / len(pieces)
        adversary.loss(images, labels, cross_entropy, fraction=1 / rounds).backward()
        adversary.collect()
        if (number + 1) % rounds == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, adversary


DATA = batches(5, size=8)
