"""Operations of a step against ordinary training, counted by torch on a small ResNet-18."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conadv import plain
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
from support.loops import cross_entropy
from support.resnet import resnet18


@functools.cache
def cost(make, total: int = 16) -> tuple[int, float]:
    """FLOPs of two steps in their steady state, and what the adversary counts for them."""
    model = plain(resnet18())
    adversary = WeightAdversary(model, WeightAttack(0.05, micro_batch=4), make())
    fresh = adversary.fresh_images(total)
    images, labels = torch.randn(fresh, 3, 16, 16), torch.arange(fresh) % 5

    def step():
        adversary.peek(images, labels)
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()

    step()
    step()
    before = adversary.compute
    with FlopCounterMode(display=False) as counter:
        step()
        step()
    return counter.get_total_flops(), adversary.compute - before


def fixed():
    return Recycled(budget="fixed")


def half():
    return Recycled(share=0.5)


def every_second():
    return Recycled(every=2)


def sequential_every_second():
    return Sequential(every=2)


def lookahead_every_second():
    return Lookahead(every=2)


def mixed():
    return Sequential(weight=0.5)


def faded():
    return Recycled(weight=0.0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Sequential, 2.0),
        (mixed, 2.0),
        (Recycled, 2.0),
        (fixed, 1.0),
        (half, 1.5),
        (every_second, 1.5),
        (sequential_every_second, 1.5),
        (lookahead_every_second, 1.5),
        (faded, 1.0),
        (Lookahead, 2.0),
        (Slot, 1.0),
        (Noise, 1.0),
    ],
)
def test_flops_over_ordinary_training(make, expected: float) -> None:
    ordinary, unit = cost(WeightSchedule)
    flops, counted = cost(make)
    assert flops / ordinary == pytest.approx(expected, abs=0.02)
    assert counted / unit == pytest.approx(expected, abs=0.001)


def test_no_schedule_costs_what_the_network_costs() -> None:
    model = plain(resnet18())
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.arange(16) % 5).backward()
    assert cost(WeightSchedule)[0] == 2 * counter.get_total_flops()
