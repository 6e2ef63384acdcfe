"""Which training images are used, and which of them are held out for validation."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.sampler import order_of

_EPOCH = 2**32
"""Stands for the split in the random stream of the sampler; no run gets to this epoch."""
CHUNK = 2**20
"""Images that are looked at at a time."""


class Labelled(Protocol):
    """What a split has to know of a data set."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def train_labels(self) -> Tensor:
        """int64, shape (N,), from 0."""

    @property
    def classes(self) -> tuple[str, ...]:
        """A label is an index into them."""


class Indices(Protocol):
    """Which images, in ascending order: a tensor, or what needs no memory for each of them."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, places: Tensor, /) -> Tensor:
        """Those at some places of the order, both int64, shape (n,)."""


class Rest:
    """All images but some, in the memory of these.

    Args:
        total: images of the data set.
        without: which are left out, int64, ascending.
    """

    def __init__(self, total: int, without: Tensor) -> None:
        self._count = total - len(without)
        # Of the images before each of those that are left out, so many remain.
        self._before = without - torch.arange(len(without))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: Tensor, /) -> Tensor:
        """The images at these places; nothing is checked."""
        return places + torch.searchsorted(self._before, places, right=True)


def split(
    dataset: Labelled, validation: float, seed: int, train_images: int | None = None
) -> tuple[Tensor, Tensor]:
    """Hold out part of the training images as `divide` does; both parts as tensors."""
    train, held_out = divide(dataset, validation, seed, train_images)
    return train[torch.arange(len(train))], held_out


def divide(
    dataset: Labelled, validation: float, seed: int, train_images: int | None = None
) -> tuple[Indices, Tensor]:
    """Hold out part of the training images: (train indices, validation indices), ascending.

    Every class has the same share in both parts as in the data set, as far as whole images go. A
    validation share above 0 holds out one image at least. Where all images are used, memory grows
    with those that are held out, not with the data set.

    Args:
        dataset: its training images are split; test images are not touched.
        validation: share to hold out, in [0, 1).
        seed: which images.
        train_images: use only so many images of the data set; validation comes out of these.
            None: all.

    Raises:
        DataError: more images are asked for than there are, or nothing is left to train on.
    """
    total = len(dataset.train_labels)
    wanted = total if train_images is None else train_images
    if not 1 <= wanted <= total:
        raise DataError(
            f"data.train_images={wanted}, but {dataset.name} has {total}: give 1 to {total}."
        )
    if not 0 <= validation < 1:
        raise DataError(f"validation={validation}: give a share from 0 to below 1.")
    held_out = max(1, round(wanted * validation)) if validation else 0
    if held_out == wanted:
        raise DataError(f"validation={validation} of {wanted} images leaves none to train on.")
    if wanted == total:
        without = _stratified(dataset, seed, held_out).sort().values
        return Rest(total, without), without
    chosen = _stratified(dataset, seed, wanted)
    return chosen[held_out:].sort().values, chosen[:held_out].sort().values


def _stratified(dataset: Labelled, seed: int, count: int) -> Tensor:
    """The first indices of a random order of which every prefix has the classes' shares.

    An image's place is that within its class, as a share of the class: (k + 1/2) / n for the k-th
    of n. Of K classes at most x N + K / 2 images have a place up to x, and at least x N - K / 2, so
    the first `count` places are at most (count + K / 2) / N: only images of such places are kept
    on the way through the order.
    """
    labels, classes = dataset.train_labels, len(dataset.classes)
    total = len(labels)
    sizes = np.zeros(classes, dtype=np.int64)
    for part in labels.split(CHUNK):
        sizes += np.bincount(part.numpy(), minlength=classes)
    bound = (count + classes / 2) / total
    limits = np.minimum(sizes, np.floor(bound * sizes + 0.5).astype(np.int64) + 1)
    seen = np.zeros(classes, dtype=np.int64)
    kept, places = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for first in range(0, total if count else 0, CHUNK):
        if (seen >= limits).all():
            break
        order = order_of(seed, _EPOCH, total, first, min(total, first + CHUNK))
        of = labels[order].numpy()
        number = _numbers(of) + seen[of]
        near = number < limits[of]
        kept.append(order.numpy()[near])
        places.append((number[near] + 0.5) / sizes[of[near]])
        seen += np.bincount(of, minlength=classes)
    chosen = np.argsort(np.concatenate(places), kind="stable")[:count]
    return torch.from_numpy(np.concatenate(kept)[chosen])


def _numbers(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same label come before each."""
    by_label = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    found = np.empty(len(labels), dtype=np.int64)
    found[by_label] = np.arange(len(labels)) - begins
    return found
