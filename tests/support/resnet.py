"""A ResNet-18 for CIFAR, a quarter as wide, split: what operations are counted on."""

from torch import nn

import conadv
from support.loops import CLASSES


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
