"""The images of a run that are held in memory: training, validation, test."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.input.feed import Feed, ResidentFeed
from conadv.trainer.input.images import Images
from conadv.trainer.input.splits import Facts
from conadv.trainer.recipe import Recipe


@dataclass(frozen=True)
class ResidentSplits:
    """A data set in memory, and which of its training images a run trains on and validates on."""

    dataset: ImageDataset
    train_indices: Tensor
    val_indices: Tensor
    device: torch.device
    test_unused: bool = False
    """Whether training images that are neither trained on nor held out join the test images."""

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

    def train_labels(self) -> Tensor:
        """Labels of the images to train on."""
        return self.dataset.train_labels[self.train_indices]

    def feed(self, recipe: Recipe, slots: range) -> Feed:
        """Batches made on the device."""
        return ResidentFeed(recipe, self.dataset, self.train_indices, self.device)

    def train(self, count: int | None = None) -> Images:
        """Take at most ``count`` training images, without augmentation."""
        return self._training_images(self.train_indices, count)

    def validation(self) -> Images | None:
        """The images held out, or None."""
        return self._training_images(self.val_indices) if len(self.val_indices) else None

    def test(self) -> Images:
        """The test set, and behind it the unused training images where the recipe says so."""
        data = self.dataset
        images, labels = data.test_images, data.test_labels
        if self.test_unused:
            unused = torch.ones(len(data.train_labels), dtype=torch.bool)
            unused[self.train_indices] = False
            unused[self.val_indices] = False
            images = torch.cat([images, data.train_images[unused]])
            labels = torch.cat([labels, data.train_labels[unused]])
        return self._images(images, labels)

    def _training_images(self, indices: Tensor, count: int | None = None) -> Images:
        chosen = indices
        if count is not None and count < len(indices):
            chosen = indices[torch.arange(count) * len(indices) // count]
        return self._images(self.dataset.train_images[chosen], self.dataset.train_labels[chosen])

    def _images(self, images: Tensor, labels: Tensor) -> Images:
        data = self.dataset
        return Images(images.to(self.device), labels.to(self.device), data.mean, data.std)
