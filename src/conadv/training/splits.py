"""The images of a run: training, validation, test."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from conadv.data import ImageDataset, load_dataset, split
from conadv.distributed import World
from conadv.training.feed import Feed, ResidentFeed
from conadv.training.measure import EvalImages, Images
from conadv.training.recipe import Recipe


@dataclass(frozen=True)
class Facts:
    """What networks, attacks and files have to know of a data set."""

    name: str
    fingerprint: str
    channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, on [0, 1]; images are standardised with it."""
    std: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {
            "dataset": self.name,
            "fingerprint": self.fingerprint,
            "channels": self.channels,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def facts_from(values: Mapping[str, Any]) -> Facts:
    """From `Facts.as_dict`."""
    mean = tuple(values["mean"])
    return Facts(
        values["dataset"],
        values["fingerprint"],
        int(values.get("channels", len(mean))),  # older checkpoints lack it
        tuple(values["classes"]),
        mean,
        tuple(values["std"]),
    )


class Splits(Protocol):
    """The images of a run, wherever they lie."""

    @property
    def facts(self) -> Facts:
        """About the whole data set."""
        ...

    @property
    def train_count(self) -> int:
        """Images to train on, those held out not counted."""
        ...

    def feed(self, recipe: Recipe, slots: range) -> Feed:
        """The training images of each step, of which ``slots`` are this rank's micro-batches."""
        ...

    def train(self, count: int | None = None) -> EvalImages:
        """At most ``count`` training images, without augmentation."""
        ...

    def validation(self) -> EvalImages | None:
        """The images held out, or None."""
        ...

    def test(self) -> EvalImages:
        """The test set."""
        ...


@dataclass(frozen=True)
class ResidentSplits:
    """A data set in memory, and which of its training images a run trains on and validates on."""

    dataset: ImageDataset
    train_indices: Tensor
    val_indices: Tensor
    device: torch.device

    @property
    def facts(self) -> Facts:
        """About the whole data set."""
        data = self.dataset
        return Facts(
            data.name,
            data.fingerprint,
            data.train_images.shape[1],
            data.classes,
            data.mean,
            data.std,
        )

    @property
    def train_count(self) -> int:
        """Images to train on."""
        return len(self.train_indices)

    def feed(self, recipe: Recipe, slots: range) -> Feed:
        """Batches made on the device."""
        return ResidentFeed(recipe, self.dataset, self.train_indices, self.device)

    def train(self, count: int | None = None) -> Images:
        """At most ``count`` training images, without augmentation."""
        return self._training_images(self.train_indices, count)

    def validation(self) -> Images | None:
        """The images held out, or None."""
        return self._training_images(self.val_indices) if len(self.val_indices) else None

    def test(self) -> Images:
        """The test set."""
        data = self.dataset
        return self._images(data.test_images, data.test_labels)

    def _training_images(self, indices: Tensor, count: int | None = None) -> Images:
        chosen = indices
        if count is not None and count < len(indices):
            chosen = indices[torch.arange(count) * len(indices) // count]
        return self._images(self.dataset.train_images[chosen], self.dataset.train_labels[chosen])

    def _images(self, images: Tensor, labels: Tensor) -> Images:
        data = self.dataset
        return Images(images.to(self.device), labels.to(self.device), data.mean, data.std)


def load_splits(recipe: Recipe, device: torch.device, world: World | None = None) -> Splits:
    """Load the data set of a recipe and cut it as the recipe says.

    Raises:
        DataError: The data cannot be had.
        RecipeError: There are fewer images than the recipe asks for.
    """
    settings = recipe.data
    if settings.dataset == "files":
        from conadv.training.file_splits import load_file_splits

        return load_file_splits(recipe, device, world or World())
    options: dict[str, Any] = {}
    if settings.dataset == "synthetic":
        options = settings.synthetic.model_dump()
    dataset = load_dataset(settings.dataset, settings.root, **options)
    train, held_out = split(dataset, settings.validation, recipe.seed, settings.train_images)
    return ResidentSplits(dataset, train, held_out, device)
