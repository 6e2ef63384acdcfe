"""Which training images are used, and which of them are held out for validation."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from conadv.errors import DataError
from conadv.trainer.data.sampler import permutation

_EPOCH = 2**32
"""Stands for the split in the random stream of the sampler; no run gets to this epoch."""


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


def split(
    dataset: Labelled, validation: float, seed: int, train_images: int | None = None
) -> tuple[Tensor, Tensor]:
    """Hold out part of the training images: (train indices, validation indices), int64, sorted.

    Every class has the same share in both parts as in the data set, as far as whole images go. A
    validation share above 0 holds out one image at least.

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
    chosen = _stratified(dataset, seed)[:wanted]
    return chosen[held_out:].sort().values, chosen[:held_out].sort().values


def _stratified(dataset: Labelled, seed: int) -> Tensor:
    """All indices in a random order of which every prefix has the classes' shares."""
    order = permutation(seed, _EPOCH, len(dataset.train_labels))
    labels = dataset.train_labels[order].numpy()
    place = np.empty(len(labels))  # of an image within its class, as a share of the class
    for label in range(len(dataset.classes)):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / max(1, len(members))
    return order[torch.from_numpy(np.argsort(place, kind="stable"))]
