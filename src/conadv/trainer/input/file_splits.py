"""The images of a run that lie as encoded files: training, validation, test."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from conadv.errors import DataError, RecipeError
from conadv.trainer.data.cache import say_to_stderr
from conadv.trainer.data.decoding import CentreCrop, ImageLoader
from conadv.trainer.data.resident import standardise
from conadv.trainer.data.sources import ALLOWED, ImageSource, NoSuchSplitError, open_source
from conadv.trainer.data.split import Indices, divide
from conadv.trainer.distributed import World
from conadv.trainer.input.feed import Feed
from conadv.trainer.input.file_feed import FileFeed
from conadv.trainer.input.images import Images, evenly_spread
from conadv.trainer.input.splits import Facts
from conadv.trainer.recipe import Recipe


@dataclass(frozen=True)
class FileImages:
    """Images of one split, decoded when they are needed; see `measure.EvalImages`.

    Args:
        source: Where they lie.
        indices: Which of them, int64, shape (n,).
        crop: What is done to each.
        mean: Per channel, in [0, 1] units.
        std: Likewise.
        workers: Processes that decode while images are evaluated.
        max_corrupt: Share of unreadable ones above which evaluation stops.
    """

    source: ImageSource
    indices: Tensor
    crop: CentreCrop
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 0
    max_corrupt: float = 0.001

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int | None) -> FileImages:
        """Take at most ``count`` of them, evenly spread over the split; None: all."""
        if count is None or count >= len(self):
            return self
        return replace(self, indices=self.indices[evenly_spread(len(self), count)])

    def repeated(self, count: int) -> FileImages:
        """The first image so many times."""
        return replace(self, indices=self.indices[:1].expand(count).contiguous())

    def part(self, rank: int, size: int) -> FileImages:
        """A contiguous part for one of several ranks; parts differ by one image at most."""
        return replace(self, indices=self.indices.tensor_split(size)[rank])

    def resident(self) -> Images:
        """All of them decoded, in memory."""
        with self._loader() as loader:
            found = loader.request(self.indices, 0, 0).result()
        return Images(found.images.contiguous(), found.labels, self.mean, self.std)

    def batches(
        self, size: int, device: torch.device, *, channels_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised float32 batches (images, labels) on a device, in order."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        with self._loader() as loader:
            requests = (loader.request(part, 0, 0) for part in self.indices.split(size))
            ahead = deque(islice(requests, 3 if self.workers else 1))
            while ahead:
                found = ahead.popleft().result()
                ahead.extend(islice(requests, 1))
                images = found.images.to(device).contiguous(memory_format=layout)
                yield standardise(images, self.mean, self.std), found.labels.to(device)
            counts = loader.counts
            if counts.corrupt:
                where, why = next(iter(counts.named.items()))
                warnings.warn(
                    f"{counts.corrupt:,} of {counts.read:,} images to be evaluated cannot be "
                    "decoded; others of the same batch stand for them. The first is "
                    f"{where}: {why}",
                    stacklevel=2,
                )

    def _loader(self) -> ImageLoader:
        few = min(self.workers, -(-len(self) // 8))  # no more processes than they have work
        return ImageLoader(self.source, self.crop, few, 0, max_corrupt=self.max_corrupt)


@dataclass(frozen=True)
class FileSplits:
    """Images in files, and which of them a run trains on and validates on."""

    recipe: Recipe
    source: ImageSource
    """Training images, with those held out."""
    test_source: ImageSource
    train_indices: Indices
    val_indices: Tensor
    device: torch.device
    workers: int

    @property
    def facts(self) -> Facts:
        """About the whole data set; no pixel is read for the fingerprint."""
        files = self.recipe.data.files
        both = f"{self.source.fingerprint} {self.test_source.fingerprint}"
        return Facts(
            self.source.name,
            hashlib.sha256(both.encode()).hexdigest(),
            len(files.mean),
            self.source.classes,
            files.mean,
            files.std,
        )

    @property
    def train_count(self) -> int:
        """Images to train on."""
        return len(self.train_indices)

    def train_labels(self) -> Tensor:
        """Labels of the images to train on."""
        return self.source.labels[self._train_indices(None)]

    def feed(self, recipe: Recipe, slots: range) -> Feed:
        """Batches decoded by worker processes."""
        return FileFeed(recipe, self.source, self.train_indices, self.device, slots, self.workers)

    def train(self, count: int | None = None) -> FileImages:
        """Take at most ``count`` training images, without augmentation."""
        return self._images(self.source, self._train_indices(count))

    def validation(self) -> FileImages | None:
        """The images held out, or None."""
        return self._images(self.source, self.val_indices) if len(self.val_indices) else None

    def test(self) -> FileImages:
        """The data set's own validation images, for which nobody has published a test set.

        Where there are none, the images held out.
        """
        held_out = self.test_source is self.source
        indices = self.val_indices if held_out else torch.arange(len(self.test_source))
        return self._images(self.test_source, indices)

    def _train_indices(self, count: int | None) -> Tensor:
        return self.train_indices[evenly_spread(len(self.train_indices), count)]

    def _images(self, source: ImageSource, indices: Tensor) -> FileImages:
        files = self.recipe.data.files
        crop = CentreCrop(files.eval_size, files.eval_resize)
        return FileImages(
            source, indices, crop, files.mean, files.std, self.workers, files.max_corrupt
        )


@dataclass(frozen=True)
class _TrainLabels:
    name: str
    train_labels: Tensor
    classes: tuple[str, ...]


def load_file_splits(recipe: Recipe, device: torch.device, world: World) -> FileSplits:
    """Open the images in ``data.root`` and cut them as the recipe says.

    Raises:
        DataError: They cannot be opened, or training and test images have other classes.
        RecipeError: No ``data.root``.
    """
    settings = recipe.data
    if settings.root is None:
        raise RecipeError(
            "data.dataset=files needs data.root: give data.root=WHERE, which is "
            f"{ALLOWED}. Without data, --dry-run tries a recipe on made-up images."
        )
    source = _open(recipe, settings.root, "train")
    test = _test_source(recipe, source)
    if test is not source and test.fingerprint == source.fingerprint:
        raise DataError(
            f"{settings.root} holds the same images for training and for testing. Give a folder "
            "with train and val in it, or say where test images lie: data.files.test_root=WHERE."
        )
    if source.classes != test.classes:
        odd = sorted(set(source.classes) ^ set(test.classes))[:3]
        raise DataError(
            f"{settings.root}: training images have {len(source.classes)} classes, test images "
            f"{len(test.classes)}, and not the same ones ({', '.join(odd)} ...). Give both the "
            "same class folders."
        )
    labels = _TrainLabels(source.name, source.labels, source.classes)
    used, seed = settings.train_images, recipe.split_seed
    train, held_out = divide(labels, settings.validation, seed, used)
    workers = settings.files.workers
    if workers is None:
        # One core of each process is left to the training itself.
        workers = max(1, (os.cpu_count() or 1) // world.local_size - 1)
    return FileSplits(recipe, source, test, train, held_out, device, workers)


def _open(recipe: Recipe, root: str, split: str) -> ImageSource:
    files = recipe.data.files
    return open_source(
        root, split, image_column=files.image_column, label_column=files.label_column
    )


def _test_source(recipe: Recipe, source: ImageSource) -> ImageSource:
    """The images to test on: the split val, else test, else those held out of training.

    Raises:
        DataError: There are none of these.
    """
    settings = recipe.data
    assert settings.root is not None
    if settings.files.test_root is not None:
        return _open(recipe, settings.files.test_root, "val")
    for name in ("val", "test"):
        try:
            return _open(recipe, settings.root, name)
        except NoSuchSplitError:
            continue
    if not settings.validation:
        raise DataError(
            f"{settings.root} has images to train on and none to test on. Say where these lie "
            "(data.files.test_root=WHERE), or hold some out: data.validation=0.1."
        )
    say_to_stderr(
        f"{settings.root} has no test images: those held out (data.validation="
        f"{settings.validation:g}) are tested on, so the test accuracy is that of validation"
    )
    return source
