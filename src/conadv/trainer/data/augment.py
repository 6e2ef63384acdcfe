"""Crop, flip and cutout of whole batches; what happens to an image is a pure function.

The random numbers of an image follow from the seed, the training step, the image's place in that
step and the view, and from nothing else: micro-batches, ranks and a resumed run change no pixel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conadv._words import import_callable
from conadv.errors import DataError

VIEWS = 16
"""Independent views of the images of one step."""
_WORDS = 5
_BLOCK = 4
"""64-bit words that Philox makes at a time, and by which its counter counts."""
# Philox counts in 256 bits. `draw` uses the lowest 64 of them, `decoding.streams` those from 64 on
# for images and from 192 on for micro-batches: no two streams ever meet.
_OWN = 128


@dataclass(frozen=True)
class Augment:
    """What is done to training images before standardisation: flip, then crop, then cutout.

    Args:
        crop_padding: pad by so many black pixels on each side, crop the original size at random.
        flip: mirror left to right with probability one half.
        cutout: black out a square of this side at a random centre (DeVries & Taylor, 2017,
            arXiv 1708.04552); the part of it outside the image is lost.
        own: name of a function of one's own that comes last; see `augment_own`.

    Raises:
        ValueError: a negative number of pixels.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    own: str | None = None

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError(
                f"crop_padding={self.crop_padding}, cutout={self.cutout}: give pixels, 0 or more."
            )

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.crop_padding or self.flip or self.cutout or self.own)


def philox(seed: int, step: int, view: int, counter: int) -> np.random.Philox:
    """The stream of random words of a view of a step, from a place on.

    Args:
        seed: of the run.
        step: from 0.
        view: 0, or another number below `VIEWS` for a further, independent view.
        counter: where it begins, in blocks of four words.

    Raises:
        ValueError: a negative step, or a view too many.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view={view}: views run from 0 to {VIEWS - 1}.")
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0.")
    # The upper half of the key's second word is for augmentation, the lower for the sampler.
    key = np.array([seed % 2**64, 2**63 + (step * VIEWS + view) % 2**63], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def augment_own(
    name: str, image: Tensor, seed: int, step: int, place: int, view: int = 0
) -> Tensor:
    """One image through a function of one's own, with random numbers that are this image's alone.

    Args:
        name: ``module:function``; it is given the image and a `numpy.random.Generator`.
        image: uint8, shape (H, W, C).
        seed: of the run.
        step: from 0.
        place: of the image among those of the step, from 0.
        view: see `philox`.

    Raises:
        DataError: what comes back is no image of the same shape.
    """
    random = np.random.Generator(philox(seed, step, view, (place + 1) << _OWN))
    made = import_callable(name)(image, random)
    if not isinstance(made, Tensor) or made.dtype != torch.uint8 or made.shape != image.shape:
        given = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else made
        raise DataError(
            f"data.augment={name} made {given} of an image of shape {tuple(image.shape)}: return "
            "a uint8 tensor of the same shape."
        )
    return made


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
    if step < 0 or start < 0:
        raise ValueError(f"step={step}, start={start}: both count from 0.")
    block, skip = divmod(start * _WORDS, _BLOCK)
    words = philox(seed, step, view, block).random_raw(skip + count * _WORDS)[skip:]
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
