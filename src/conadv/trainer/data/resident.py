"""A whole data set as bytes on the device: batches are made there, without worker processes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from conadv.errors import DataError
from conadv.trainer.data.augment import (
    Augment,
    augment_own,
    cut_out,
    draw,
    flip_some,
    windows,
)
from conadv.trainer.data.dataset import ImageDataset, check_positions


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images (N, C, H, W) to float32: divided by 255, minus the mean, over the std.

    The memory format stays as it is.

    Raises:
        ValueError: images that are not uint8, or mean or std of another length than the images
            have channels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}: give uint8 of shape "
            "(N, C, H, W). Floats are standardised already, or lie on another scale."
        )
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean has {len(mean)} values and std {len(std)}, but the images have {channels} "
            "channels: give one per channel."
        )
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    view = (1, channels, 1, 1)
    result = images.float()
    # In place: fresh memory costs more than the arithmetic.
    return torch.addcmul(shift.view(view), result, scale.view(view), out=result)


class ResidentSource:
    """Training batches from images that lie on the device as bytes.

    They take (H + 2 p)(W + 2 p) C bytes each, where p is the padding of the crop.

    Args:
        dataset: its training images.
        indices: which of them, int64, shape (n,); samples are positions in here.
        device: where they go and where batches are made.
        augment: what is done to them.
        seed: of the augmentation.
        channels_last: memory format of the batches.

    Raises:
        DataError: no indices, or one that is no image of the data set.
        ValueError: a crop that could miss the image altogether.
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
        _check_indices(dataset, indices)
        self._size = (dataset.train_images.shape[2], dataset.train_images.shape[3])
        padding = augment.crop_padding
        if padding >= min(self._size):
            raise ValueError(
                f"crop_padding={padding} on images of {self._size[0]} x {self._size[1]}: some "
                f"crops would be all black; give 0 to {min(self._size) - 1}."
            )
        images = dataset.train_images[indices].to(device)
        # Channels last in memory: a row of a crop is then one run of bytes.
        padded = pad(images, (padding,) * 4).permute(0, 2, 3, 1).contiguous()
        self._windows = windows(padded, padding)
        self._labels = dataset.train_labels[indices].to(device)
        self._mean, self._std = dataset.mean, dataset.std
        self._augment = augment
        self._seed = seed
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self._labels)

    def batch(
        self, samples: Tensor, step: int, *, start: int = 0, total: int | None = None, view: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Standardised images (N, C, H, W), float32, and labels (N,), int64, on the device.

        Args:
            samples: positions, int64, shape (N,), on the CPU: a contiguous part of the step's.
            step: the training step; with `start` it fixes the augmentation, so that micro-batches
                and ranks never change an image.
            start: place of the first sample among the step's images.
            total: images of the whole step, only to be checked against; None: not checked.
            view: another number below 16 gives a further, independent view of the same images.

        Raises:
            ValueError: samples that do not exist, or lie beyond the step's images.
        """
        self._check_samples(samples, start, total)
        device = self._labels.device
        drawn = draw(
            self._augment, self._size, self._seed, step, len(samples), start=start, view=view
        )
        chosen = samples.to(device)
        rows, columns, flips, cut_rows, cut_columns = drawn.to(device)
        if self._augment.flip:
            # An image is flipped first, then cropped. Flipping the mirrored crop is the same.
            columns = torch.where(flips == 1, 2 * self._augment.crop_padding - columns, columns)
        images = self._windows[chosen, rows, columns]  # (N, H, W, C)
        if self._augment.flip:
            images = flip_some(images, flips == 1)
        if self._augment.cutout:
            images = cut_out(images, self._augment.cutout, cut_rows, cut_columns)
        if (own := self._augment.own) is not None:
            made = [
                augment_own(own, image, self._seed, step, start + place, view)
                for place, image in enumerate(images)
            ]
            images = torch.stack(made)
        images = images.permute(0, 3, 1, 2).contiguous(memory_format=self._format)
        return standardise(images, self._mean, self._std), self._labels[chosen]

    def _check_samples(self, samples: Tensor, start: int, total: int | None) -> None:
        if total is not None and start + len(samples) > total:
            raise ValueError(
                f"Samples {start} to {start + len(samples)} of a step of {total} images: give the "
                "whole step's number of images as total."
            )
        # Only on the CPU, where looking costs nothing; on a GPU a wrong index ends the process.
        if samples.device.type == "cpu" and len(samples):
            check_positions(samples, len(self))


def _check_indices(dataset: ImageDataset, indices: Tensor) -> None:
    images = len(dataset.train_labels)
    if indices.dtype != torch.int64 or indices.ndim != 1 or len(indices) == 0:
        raise DataError(
            f"indices are {indices.dtype} of shape {tuple(indices.shape)}: give int64 of shape "
            "(n,), at least one (see conadv.trainer.data.split)."
        )
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= images:
        raise DataError(
            f"indices run from {low} to {high}, but {dataset.name} has {images} training images: "
            f"give 0 to {images - 1}."
        )
