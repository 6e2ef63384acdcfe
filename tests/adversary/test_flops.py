"""Operations of a step against vanilla, counted by torch on a ResNet-18 for CIFAR, 1/4 wide."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import conadv
from support.loops import ATTACK, CLASSES, cross_entropy


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.skip(x)).relu()


def resnet18() -> nn.Module:
    widths, layers = (16, 32, 64, 128), [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)]
    inside = 16
    for number, width in enumerate(widths):
        layers += [Block(inside, width, 2 if number else 1), Block(width, width, 1)]
        inside = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES)]
    return conadv.split_norms(nn.Sequential(*layers))


@functools.cache
def cost(make, forward: str = "auto", count: int = 4) -> tuple[int, float]:
    """FLOPs of a settled step, and what the adversary counts for it."""
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
