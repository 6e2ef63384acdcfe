"""The images of a run: training, validation, test."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conadv.data import ImageDataset, load_dataset, split
from conadv.training.measure import Images
from conadv.training.recipe import Recipe


@dataclass(frozen=True)
class Splits:
    """A data set, and which of its training images a run trains on and validates on."""

    dataset: ImageDataset
    train_indices: Tensor
    val_indices: Tensor
    device: torch.device

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

    @property
    def facts(self) -> dict[str, Any]:
        """Name, fingerprint, classes and pixel statistics, as plain values."""
        data = self.dataset
        return {
            "dataset": data.name,
            "fingerprint": data.fingerprint,
            "classes": list(data.classes),
            "mean": list(data.mean),
            "std": list(data.std),
        }

    def _training_images(self, indices: Tensor, count: int | None = None) -> Images:
        chosen = indices
        if count is not None and count < len(indices):
            chosen = indices[torch.arange(count) * len(indices) // count]
        return self._images(self.dataset.train_images[chosen], self.dataset.train_labels[chosen])

    def _images(self, images: Tensor, labels: Tensor) -> Images:
        data = self.dataset
        return Images(images.to(self.device), labels.to(self.device), data.mean, data.std)


def load_splits(recipe: Recipe, device: torch.device) -> Splits:
    """Load the data set of a recipe and cut it as the recipe says.

    Raises:
        DataError: The data cannot be had.
        RecipeError: There are fewer images than the recipe asks for.
    """
    settings = recipe.data
    options: dict[str, Any] = {}
    if settings.dataset == "synthetic":
        options = settings.synthetic.model_dump()
    dataset = load_dataset(settings.dataset, settings.root, **options)
    train, held_out = split(dataset, settings.validation, recipe.seed, settings.train_images)
    return Splits(dataset, train, held_out, device)
