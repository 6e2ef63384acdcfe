"""Which part of an image is taken: a random one for training, the middle for evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ATTEMPTS = 10
NUMBERS = 2 + 2 * ATTEMPTS
"""Random numbers that `random_box` takes, whatever it needs of them."""


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: Sequence[float],
) -> Box:
    """A part of random area and shape, by the rule of torchvision's RandomResizedCrop.

    The area is uniform and the logarithm of width / height is; the first of ten that fits is
    taken, and if none does the largest middle part of an allowed shape.

    Args:
        height: of the image.
        width: of the image.
        scale: smallest and largest area, as a share of the image's.
        ratio: smallest and largest width / height.
        numbers: `NUMBERS` random numbers in [0, 1): two for the place, two for each attempt.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        first, second = numbers[2 + 2 * attempt], numbers[3 + 2 * attempt]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * first)
        shape = math.exp(low + (high - low) * second)
        wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(numbers[0] * (height - tall + 1))
            left = int(numbers[1] * (width - wide + 1))
            return Box(top, left, tall, wide)
    return middle_box(height, width, ratio)


def middle_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest part in the middle whose width / height lies within `ratio`."""
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        wide = min(width, max(1, round(height * ratio[1])))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes `shorter`, rounded as torchvision does."""
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)


def centre(height: int, width: int, size: int) -> Box:
    """The square of side `size` in the middle, placed as torchvision's CenterCrop does."""
    return Box(round((height - size) / 2.0), round((width - size) / 2.0), size, size)
