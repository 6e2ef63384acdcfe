"""A network and a data set that recipes of tests name as ``support.parts:NAME``."""

from torch import nn

from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.data.synthetic import make_synthetic

NAMED = {"model.name": "support.parts:network", "data.dataset": "support.parts:blobs"}


def network(in_chans: int, num_classes: int, width: int = 4) -> nn.Module:
    """Two layers."""
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, 2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def blobs() -> ImageDataset:
    """Images of three classes."""
    return make_synthetic(size=8, classes=3, train_images=64, test_images=16)
