"""Made-up images for tests and dry runs: learnable, instant, of any size."""

import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.dataset import ImageDataset


def make_synthetic(
    size: int = 16,
    classes: int = 4,
    channels: int = 3,
    train_images: int = 512,
    test_images: int = 128,
    seed: int = 0,
) -> ImageDataset:
    """Each class is a smooth random pattern; an image is its class's pattern, dimmed, and noise.

    Args:
        size: height and width in pixels.
        classes: number of classes.
        channels: number of channels.
        train_images: number of training images, classes in turn.
        test_images: number of test images.
        seed: of the patterns and the noise.

    Raises:
        DataError: a number below 1.
    """
    numbers = {
        "size": size,
        "classes": classes,
        "channels": channels,
        "train_images": train_images,
        "test_images": test_images,
    }
    for name, number in numbers.items():
        if number < 1:
            raise DataError(f"synthetic: {name}={number}: give 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(classes, channels, 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        noise = torch.rand(count, channels, size, size, generator=generator)
        images = (0.6 * patterns[labels] + 0.4 * noise) * 255
        return images.to(torch.uint8), labels

    train, test = draw(train_images), draw(test_images)
    names = tuple(f"class {i}" for i in range(classes))
    return ImageDataset("synthetic", *train, *test, names, source="made up", licence="none needed")
