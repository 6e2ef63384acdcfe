"""A whole data set as bytes on the device: batched crop, flip and cutout there, no workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conadv.data.dataset import ImageDataset


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images (N, C, H, W) to float32: divided by 255, minus the mean, over the std.

    Raises:
        ValueError: mean or std have another length than the images have channels.
    """
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean has {len(mean)} values and std {len(std)}, but the images have {channels} "
            "channels: give one per channel."
        )
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    view = (1, channels, 1, 1)
    return torch.addcmul(shift.view(view), images.float(), scale.view(view))


@dataclass(frozen=True)
class Augment:
    """What is done to training images, all of it before standardisation.

    Args:
        crop_padding: pad by so many black pixels on each side, crop the original size at random.
        flip: mirror every second image, at random.
        cutout: black out a square of this side at a random centre (DeVries & Taylor, 2017); the
            part of it outside the image is lost.

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


@dataclass(frozen=True)
class Draws:
    """Random numbers of one step's images, float64 in [0, 1), shape (images, 5).

    Columns: crop row, crop column, flip, cutout row, cutout column. Always all five, so that
    switching one augmentation off leaves the others' numbers as they were.
    """

    numbers: Tensor

    def integers(self, column: int, count: int) -> Tensor:
        """Whole numbers from 0 to count - 1."""
        return (self.numbers[:, column] * count).long()


def draws(seed: int, step: int, count: int, view: int = 0) -> Draws:
    """The numbers of a step: a pure function of its arguments, drawn on the CPU.

    Args:
        seed: of the run.
        step: from 0.
        count: images of the whole step, whoever trains on them.
        view: 0, or another number for a further, independent view of the same images.
    """
    key = np.array([seed % 2**64, (step * 16 + view + 2**63) % 2**64], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(count * 5)
    return Draws(torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2**-53).view(-1, 5))


def augment_batch(images: Tensor, augment: Augment, numbers: Draws) -> Tensor:
    """Augmented copies of uint8 images (N, C, H, W): one gather for crop and flip together."""
    count, channels, height, width = images.shape
    pad, device = augment.crop_padding, images.device
    rows = torch.arange(height).expand(count, -1)
    columns = torch.arange(width).expand(count, -1)
    if pad:
        rows = rows + numbers.integers(0, 2 * pad + 1)[:, None] - pad
        columns = columns + numbers.integers(1, 2 * pad + 1)[:, None] - pad
    if augment.flip:  # the image is flipped first, then cropped: so indices are mirrored last
        flipped = numbers.numbers[:, 2, None] < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    valid_rows = (rows >= 0) & (rows < height)
    valid_columns = (columns >= 0) & (columns < width)
    flat = (rows.clamp(0, height - 1) * width)[:, :, None] + columns.clamp(0, width - 1)[:, None]
    index = flat.reshape(count, 1, -1).to(device).expand(-1, channels, -1)
    result = images.reshape(count, channels, -1).gather(2, index)
    result = result.view(count, channels, height, width)
    if not pad and not augment.cutout:
        return result
    keep = valid_rows[:, :, None] & valid_columns[:, None]
    if augment.cutout:
        # The square covers [centre - side // 2, centre - side // 2 + side).
        half, side = augment.cutout // 2, augment.cutout
        top = numbers.integers(3, height)[:, None] - half
        left = numbers.integers(4, width)[:, None] - half
        down, across = torch.arange(height), torch.arange(width)
        hit_rows = (down >= top) & (down < top + side)
        hit_columns = (across >= left) & (across < left + side)
        keep = keep & ~(hit_rows[:, :, None] & hit_columns[:, None])
    return result.mul_(keep[:, None].to(device))


class ResidentSource:
    """Training batches from images that lie on the device as bytes.

    Args:
        dataset: its training images.
        indices: which of them, int64, shape (n,); samples are positions in here.
        device: where they go and where batches are made.
        augment: what is done to them.
        seed: of the augmentation.
        channels_last: memory format of the batches.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        indices: Tensor,
        device: torch.device,
        augment: Augment,
        seed: int,
        channels_last: bool = False,
    ) -> None:
        self._images = dataset.train_images[indices].to(device)
        self._labels = dataset.train_labels[indices].to(device)
        self._mean, self._std = dataset.mean, dataset.std
        self._augment = augment
        self._seed = seed
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._last: tuple[tuple[int, int, int], Draws] | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def batch(
        self, samples: Tensor, step: int, *, start: int = 0, total: int | None = None, view: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Standardised images (N, C, H, W), float32, and labels (N,), int64, on the device.

        Args:
            samples: positions, int64, shape (N,), a contiguous part of what the step takes.
            step: the training step; with `start` it fixes the augmentation, so that micro-batches
                and ranks never change an image.
            start: place of the first sample among the step's images.
            total: images of the whole step; None: these are all.
            view: a further, independent view of the same images.
        """
        total = len(samples) if total is None else total
        if start < 0 or start + len(samples) > total:
            raise ValueError(
                f"Samples {start} to {start + len(samples)} of a step of {total} images: give the "
                "whole step's number of images as total."
            )
        chosen = samples.to(self._images.device)
        images, labels = self._images[chosen], self._labels[chosen]
        if self._augment.active:
            numbers = self._draws(step, total, view).numbers[start : start + len(samples)]
            images = augment_batch(images, self._augment, Draws(numbers))
        images = standardise(images, self._mean, self._std)
        return images.contiguous(memory_format=self._format), labels

    def _draws(self, step: int, total: int, view: int) -> Draws:
        key = (step, total, view)
        if self._last is None or self._last[0] != key:
            self._last = (key, draws(self._seed, step, total, view))
        return self._last[1]
