"""Crop, flip and cutout of whole batches; what happens to an image is a pure function.

The random numbers of an image follow from the seed, the training step, the image's place in that
step and the view, and from nothing else: micro-batches, ranks and a resumed run change no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

VIEWS = 16
"""Independent views of the images of one step."""
_WORDS = 5
_BLOCK = 4
"""64-bit words that Philox makes at a time, and by which its counter counts."""


@dataclass(frozen=True)
class Augment:
    """What is done to training images before standardisation: flip, then crop, then cutout.

    Args:
        crop_padding: pad by so many black pixels on each side, crop the original size at random.
        flip: mirror left to right with probability one half.
        cutout: black out a square of this side at a random centre (DeVries & Taylor, 2017,
            arXiv 1708.04552); the part of it outside the image is lost.

    Raises:
        ValueError: a negative number of pixels.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError(
                f"crop_padding={self.crop_padding}, cutout={self.cutout}: give pixels, 0 or more."
            )

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.crop_padding or self.flip or self.cutout)


def draw(
    augment: Augment,
    size: tuple[int, int],
    seed: int,
    step: int,
    count: int,
    *,
    start: int = 0,
    view: int = 0,
) -> Tensor:
    """Parameters of `count` images, int64 on the CPU, shape (5, count).

    Rows: vertical and horizontal place of the crop in the padded image, whether to flip, vertical
    and horizontal centre of the cutout. Always all five are drawn, so that switching one
    augmentation off leaves the others as they were.

    Args:
        augment: sets the range of the crop.
        size: height and width in pixels, the range of the cutout's centre.
        seed: of the run.
        step: from 0.
        count: number of images.
        start: place of the first one among the step's images.
        view: 0, or another number below `VIEWS` for a further, independent view.

    Raises:
        ValueError: a negative step, start or view, or a view too many.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view={view}: views run from 0 to {VIEWS - 1}.")
    if step < 0 or start < 0:
        raise ValueError(f"step={step}, start={start}: both count from 0.")
    # The upper half of the key's second word is for augmentation, the lower for the sampler.
    key = np.array([seed % 2**64, 2**63 + (step * VIEWS + view) % 2**63], dtype=np.uint64)
    block, skip = divmod(start * _WORDS, _BLOCK)
    words = np.random.Philox(key=key, counter=block).random_raw(skip + count * _WORDS)[skip:]
    # The 53 upper bits as a number in [0, 1), as every generator makes doubles.
    numbers = (words >> np.uint64(11)).astype(np.float64).reshape(count, _WORDS).T * 2.0**-53
    height, width = size
    shifts = 2 * augment.crop_padding + 1
    ranges = np.array([shifts, shifts, 2, height, width], dtype=np.float64)[:, None]
    drawn = (numbers * ranges).astype(np.int64)
    drawn[2] = 1 - drawn[2]  # flip on the lower half
    return torch.from_numpy(drawn)


def windows(padded: Tensor, padding: int) -> Tensor:
    """All crops of padded images, as a view that costs no memory.

    Args:
        padded: shape (N, H + 2 * padding, W + 2 * padding, C), contiguous.
        padding: pixels on each side.

    Returns:
        Shape (N, 2 * padding + 1, 2 * padding + 1, H, W, C); entry [i, y, x] is image i from row
        y and column x on. Elements overlap in memory: read only.
    """
    count, tall, wide, channels = padded.shape
    image, row, column, channel = padded.stride()
    places = 2 * padding + 1
    shape = (count, places, places, tall - 2 * padding, wide - 2 * padding, channels)
    return padded.as_strided(shape, (image, row, column, row, column, channel))


def flip_some(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen ones left to right: images (N, H, W, C), chosen bool (N,)."""
    return torch.where(chosen[:, None, None, None], images.flip(2), images)


def cut_out(images: Tensor, side: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Set a square to 0 in place: images (N, H, W, C), centres int64 (N,) each.

    The square covers [centre - side // 2, centre - side // 2 + side) in both directions.
    """
    _, height, width, _ = images.shape
    hit_rows = _covered(height, side, rows)
    hit_columns = _covered(width, side, columns)
    return images.masked_fill_((hit_rows[:, :, None] & hit_columns[:, None, :])[..., None], 0)


def _covered(length: int, side: int, centres: Tensor) -> Tensor:
    first = (centres - side // 2)[:, None]
    places = torch.arange(length, device=centres.device)
    return (places >= first) & (places < first + side)
