"""Small residual networks for 28 to 64 pixel images, as the literature on CIFAR has them.

Modules carry torchvision's names (``conv1``, ``layer1.0.bn1``, ``fc``), so that weights of
`resnet18` go into a torchvision or timm ResNet-18 but for its stem.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Shortcut without parameters: every second pixel, new channels zero (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, H / stride, W / stride)."""
        # Pooling over one pixel is a strided slice that keeps the channels_last layout.
        x = F.avg_pool2d(x, 1, self.stride)
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = (
                PadShortcut(in_channels, channels, stride)
                if padded
                else nn.Sequential(
                    nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                    nn.BatchNorm2d(channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)  # type: ignore[no-any-return]


class SmallResNet(nn.Module):
    """A 3x3 stem without pooling, stages of basic blocks, one linear layer.

    Args:
        in_chans: channels of the images.
        num_classes: number of outputs.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: basic blocks per stage.
        padded: parameter-free shortcuts (option A of He et al.) instead of 1x1 convolutions.
        stem_stride: of the first convolution; 2 makes the network three to four times as fast on
            a CPU with the same number of parameters.
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        *,
        widths: tuple[int, ...],
        blocks: int,
        padded: bool,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        channels = widths[0]
        self.stages: list[str] = []
        for stage, width in enumerate(widths):
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width, stride, padded=padded))
                channels = width
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """x + two convolution units of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unit1 = _unit(channels, channels)
        self.unit2 = _unit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        return x + self.unit2(self.unit1(x))  # type: ignore[no-any-return]


class ResNet9(nn.Module):
    """The fast network of the DAWNBench entries on CIFAR-10 (David Page, 2018), 6.6 M parameters.

    Height and width are halved three times, then the largest value of each channel is taken, so
    that sizes other than 32 pixels work.
    """

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.prep = _unit(in_chans, 64)
        self.layer1 = nn.Sequential(_unit(64, 128), nn.MaxPool2d(2), Residual(128))
        self.layer2 = nn.Sequential(_unit(128, 256), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_unit(256, 512), nn.MaxPool2d(2), Residual(512))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(512, num_classes, bias=False)
        self.scale = 0.125
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.fc(self.pool(x).flatten(1)) * self.scale  # type: ignore[no-any-return]


class PatchResNet9(nn.Module):
    """ResNet-9 on patches of 2 x 2 pixels, 0.49 M parameters: quick to train on a few CPU cores.

    Each patch becomes one pixel of four times the channels (space to depth), so that the first
    convolution sees half the height and width. A residual block follows each of the three
    widths, and the last one's largest value per channel is classified.

    Args:
        in_chans: channels of the images.
        num_classes: number of outputs.
        width: channels of the first convolution; the later ones have 2 and 4 times as many.
    """

    def __init__(self, in_chans: int, num_classes: int, *, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.PixelUnshuffle(2)
        self.prep = nn.Sequential(_unit(4 * in_chans, width), Residual(width))
        self.layer1 = _pooled(width, 2 * width)
        self.layer2 = _pooled(2 * width, 4 * width)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes, bias=False)
        self.scale = 0.125
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W), H and W even and at least 8 -> logits (N, num_classes)."""
        x = self.layer2(self.layer1(self.prep(self.patch(x))))
        return self.fc(self.pool(x).flatten(1)) * self.scale  # type: ignore[no-any-return]


def _pooled(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(_unit(in_channels, channels), nn.MaxPool2d(2), Residual(channels))


def _unit(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def _initialise(model: nn.Module) -> None:
    """He et al. (2015), by the number of outputs, as torchvision's ResNets."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_thin = partial(SmallResNet, widths=(16, 32, 64), padded=True)

SMALL_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(_thin, blocks=1),
    "resnet20": partial(_thin, blocks=3),
    "resnet18": partial(SmallResNet, widths=(64, 128, 256, 512), blocks=2, padded=False),
    "resnet9": ResNet9,
    "patch-resnet9": PatchResNet9,
}
"""Constructors ``(in_chans, num_classes) -> network`` by name.

``resnet8`` (0.08 M parameters) and ``resnet20`` (0.27 M) are the CIFAR networks of He et al.
(2016, section 4.2) with n = 1 and 3 and option A shortcuts; ``resnet18`` (11.2 M) has the stages
of the ImageNet network after a 3x3 stem; ``resnet9`` is DAWNBench's and ``patch-resnet9``
(0.49 M) a small relative of it on 2 x 2 patches. The first three take ``stem_stride``, the last
one ``width`` (`model.options` of a recipe).
"""
