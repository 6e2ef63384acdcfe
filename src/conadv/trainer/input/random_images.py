"""Made-up images of a data set's shape and published size, for trying a recipe without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from conadv._words import is_path
from conadv.trainer.data import load_dataset
from conadv.trainer.input.feed import Cut, Views
from conadv.trainer.input.images import Images
from conadv.trainer.input.splits import Facts
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.sections import VIEW_BRANCH

CIFAR10 = ((3, 32, 32), 10, 50_000)
"""(C, H, W), classes and training images, as published."""


def images_of(recipe: Recipe) -> tuple[tuple[int, int, int], int, int]:
    """(C, H, W) of a training image, classes, and training images without those held out.

    Nothing is opened or downloaded: of images in files it is what ``data.files`` says of them.
    """
    data = recipe.data
    if data.dataset == "files":
        size = data.files.size
        shape = (len(data.files.mean), size, size)
        classes, total = data.files.classes, data.files.train_images
    elif data.dataset == "synthetic":
        made = data.synthetic
        shape = (made.channels, made.size, made.size)
        classes, total = made.classes, made.train_images
    elif data.dataset == "cifar10":
        shape, classes, total = CIFAR10
    elif is_path(data.dataset):
        found = load_dataset(data.dataset, data.root, **data.options)
        _, channels, height, width = found.train_images.shape
        shape, classes = (channels, height, width), len(found.classes)
        total = len(found.train_images)
    else:
        shape, classes, total = _packaged(data.dataset)
    if data.train_images is not None:
        # Of files the size given may be less than there are; of the others it is known.
        total = data.train_images if data.dataset == "files" else min(total, data.train_images)
    held_out = max(1, round(total * data.validation)) if data.validation else 0
    return shape, classes, total - held_out


@cache
def _packaged(name: str) -> tuple[tuple[int, int, int], int, int]:
    """Shape and counts of a data set that comes with the package, which is read for that."""
    found = load_dataset(name)
    channels, height, width = found.train_images.shape[1:]
    return (channels, height, width), len(found.classes), len(found.train_images)


class RandomFeed(Cut):
    """The same random images in every step; see `Feed`.

    Args:
        recipe: Batch sizes and memory format.
        shape: (C, H, W).
        classes: Labels are drawn from so many.
        train_count: Images of an epoch.
        device: Where they lie.
    """

    def __init__(
        self,
        recipe: Recipe,
        shape: tuple[int, int, int],
        classes: int,
        train_count: int,
        device: torch.device,
    ) -> None:
        # As many images as there would be; which they are is never asked, so no memory.
        super().__init__(recipe, torch.zeros(1, dtype=torch.int64).expand(train_count))
        self._batches = [self._made(view, shape, classes, device) for view in range(2)]

    def _made(
        self, seed: int, shape: tuple[int, int, int], classes: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        count = self._recipe.fresh_per_micro_batch
        generator = torch.Generator().manual_seed(seed)
        last = self._recipe.hardware.channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        images = torch.randn(count, *shape, generator=generator).to(device, memory_format=layout)
        labels = torch.randint(classes, (count,), generator=generator).to(device)
        return images, labels

    def sizes(self, step: int) -> list[int]:
        """Fresh images in each micro-batch: every step is a full one."""
        return [self._recipe.fresh_per_micro_batch] * self._recipe.micro_steps

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """(images, labels), standardised."""
        return self._batches[0]

    def views(self, step: int, index: int) -> Views:
        """Other images, if the recipe has a second view."""
        return {} if self._recipe.method.view == "none" else {VIEW_BRANCH: self._batches[1]}

    def sample_ids(self, step: int) -> list[int]:
        """Their places in the step."""
        return list(range(self._recipe.fresh_per_step))


@dataclass(frozen=True)
class RandomSplits:
    """What `images_of` says of a recipe's data, with random pixels; see `Splits`."""

    shape: tuple[int, int, int]
    classes: int
    train_count: int
    device: torch.device
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> RandomSplits:
        """Make random images in the shapes of a recipe's data set."""
        shape, classes, count = images_of(recipe)
        if recipe.data.dataset == "files":
            return cls(shape, classes, count, device, recipe.data.files.mean, recipe.data.files.std)
        half, quarter = (0.5,) * shape[0], (0.25,) * shape[0]
        return cls(shape, classes, count, device, half, quarter)

    @property
    def facts(self) -> Facts:
        """About the data set that they stand for."""
        names = tuple(str(label) for label in range(self.classes))
        return Facts("made up", "", self.shape[0], names, self.mean, self.std)

    def train_labels(self) -> Tensor:
        """One per class."""
        return torch.arange(self.classes)

    def feed(self, recipe: Recipe, slots: range) -> RandomFeed:
        """The same random images in every step."""
        return RandomFeed(recipe, self.shape, self.classes, self.train_count, self.device)

    def train(self, count: int | None = None) -> Images:
        """One random image per class, or ``count`` of them."""
        return self._images(0).first(count)

    def validation(self) -> None:
        """None: no images are held out."""

    def test(self) -> Images:
        """One random image per class."""
        return self._images(1)

    def _images(self, seed: int) -> Images:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (self.classes, math.prod(self.shape)), generator=generator)
        images = pixels.to(torch.uint8).view(self.classes, *self.shape).to(self.device)
        labels = torch.arange(self.classes, device=self.device)
        return Images(images, labels, self.mean, self.std)
