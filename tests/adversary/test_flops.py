"""Operations of a step against vanilla, counted by torch on a ResNet-18 for CIFAR, 1/4 wide."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import conadv
from support.loops import ATTACK, cross_entropy
from support.resnet import resnet18


@functools.cache
def cost(make, forward: str = "auto", count: int = 4) -> tuple[int, float]:
    """FLOPs of a step in its steady state, and what the adversary counts for it."""
    model = resnet18()
    adversary = conadv.Adversary(model, ATTACK, make(), forward=forward)
    fresh = adversary.fresh_images(count)
    images, labels = torch.randn(fresh, 3, 16, 16), torch.arange(fresh)

    def step():
        adversary.peek(images, labels)
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()

    step()
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops(), adversary.diagnostics.compute


def fixed():
    return conadv.Recycled(share=0.25, budget="fixed")


def faded():
    return conadv.Recycled(weight=0.0)


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (conadv.Recycled, 2.02),
        (fixed, 1.02),
        (conadv.Sequential, 2.70),
        (conadv.Lookahead, 2.70),
        (conadv.Noise, 2.0),
        (faded, 1.0),
    ],
)
def test_flops_over_vanilla(make, limit: float, forward: str) -> None:
    vanilla, unit = cost(conadv.Vanilla)
    flops, counted = cost(make, forward)
    assert flops / vanilla <= limit
    # What the adversary counts is what the counter finds.
    assert flops / vanilla == pytest.approx(counted / unit, rel=0.01)


def test_a_pipeline_of_several_steps_costs_no_more() -> None:
    vanilla, _ = cost(conadv.Vanilla)
    assert cost(functools.partial(conadv.Recycled, refine=2))[0] / vanilla <= 2.02


def test_vanilla_costs_what_a_plain_network_costs() -> None:
    model = conadv.plain(resnet18())
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    assert cost(conadv.Vanilla)[0] == counter.get_total_flops()
