"""A data set of images in memory, checked once."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from conadv.errors import DataError


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class ImageDataset:
    """Images and labels, training and test, on the CPU.

    Args:
        name: what `load_dataset` calls it.
        train_images: uint8, shape (N, C, H, W).
        train_labels: int64, shape (N,), from 0.
        test_images: uint8, shape (M, C, H, W).
        test_labels: int64, shape (M,).
        classes: names of the classes; a label is an index into them.
        source: where the images come from.
        licence: under which terms.

    Raises:
        DataError: wrong types, shapes or lengths, or a label that is no index into `classes`.
    """

    name: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    source: str = ""
    licence: str = ""
    mean: tuple[float, ...] = field(init=False)
    """Mean of the training images, per channel, on [0, 1]."""
    std: tuple[float, ...] = field(init=False)
    """Likewise the standard deviation."""
    fingerprint: str = field(init=False)
    """SHA-256 of all pixels and labels, in hexadecimal: the same data wherever it came from."""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            self._check(part)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {tuple(self.train_images.shape[1:])}, test "
                f"images {tuple(self.test_images.shape[1:])}: give both the same size."
            )
        mean, std = _statistics(self.train_images)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        digest = hashlib.sha256()
        for tensor in (
            self.train_images,
            self.train_labels,
            self.test_images,
            self.test_labels,
        ):
            digest.update(tensor.contiguous().numpy().tobytes())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def _check(self, part: str) -> None:
        images: Tensor = getattr(self, f"{part}_images")
        labels: Tensor = getattr(self, f"{part}_labels")
        for what, value in (("images", images), ("labels", labels)):
            if not isinstance(value, Tensor) or value.device.type != "cpu":
                kind = f"on {value.device}" if isinstance(value, Tensor) else f"a {type(value)}"
                raise DataError(
                    f"{self.name}: {part} {what} are {kind}: give a torch.Tensor on the CPU."
                )
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                f"{self.name}: {part} images are {images.dtype} of shape {tuple(images.shape)}: "
                "give uint8 of shape (N, C, H, W)."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{self.name}: {part} labels are {labels.dtype} of shape {tuple(labels.shape)} "
                f"for {len(images)} images: give int64, one per image."
            )
        if images.numel() == 0:
            raise DataError(
                f"{self.name}: there are no {part} images, or they have no pixels: their shape is "
                f"{tuple(images.shape)}."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            wrong, known = low if low < 0 else high, len(self.classes)
            hint = " Do they begin at 1? Subtract 1." if low == 1 and high == known else ""
            raise DataError(
                f"{self.name}: a {part} label is {wrong}, but with {known} classes labels run "
                f"from 0 to {known - 1}.{hint}"
            )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on [0, 1], exact: from a count of each value."""
    means, stds = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten().to(torch.int32), minlength=256)
        share = counts.double() / counts.sum()
        mean = float((share * levels).sum())
        variance = float((share * (levels - mean) ** 2).sum())
        means.append(mean)
        # A channel that never changes would divide by zero; one grey level is the finest unit.
        stds.append(max(variance**0.5, 1 / 255))
    return tuple(means), tuple(stds)


def check_positions(samples: Tensor, images: int) -> None:
    """Raise ValueError for positions, at least one, that are not all below a number of images."""
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high >= images:
        raise ValueError(
            f"Samples run from {low} to {high}, but there are {images} images: give positions "
            f"from 0 to {images - 1}."
        )
