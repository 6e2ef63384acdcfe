"""What a network takes each class for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST_MATRIX = 200
"""Classes up to which a confusion matrix is reported."""


class ClassCounts:
    """Counts which class the images of each class are taken for, batch by batch.

    Args:
        classes: Names, by label.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.matrix = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        """Images by label and by the class with the largest logit, (K, K)."""
        self.beyond = torch.zeros(len(self.classes), dtype=torch.int64)
        """Images by label that are taken for an output which is no class of the data, (K,)."""
        self.top5 = 0
        """Images whose class is among those with the five largest logits."""

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits (N, K or more) and labels (N,)."""
        count = len(self.classes)
        predicted = logits.argmax(dim=1).clamp(max=count)
        cells = (labels * (count + 1) + predicted).bincount(minlength=count * (count + 1))
        table = cells.view(count, count + 1).cpu()
        self.matrix += table[:, :count]
        self.beyond += table[:, count]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.top5 += int((best == labels[:, None]).sum())

    @property
    def images(self) -> Tensor:
        """Images of each class, (K,)."""
        return self.matrix.sum(dim=1) + self.beyond

    def as_dict(self) -> dict[str, Any]:
        """The counts as shares.

        ``top5_accuracy`` (None with five classes or fewer), ``class_accuracy`` by name (None for
        a class without images) and ``confusion``, images in rows by true class and columns by
        predicted one (None with more than 200 classes).
        """
        images = self.images
        shares = self.matrix.diagonal().double() / images
        accuracies = [float(s) if n else None for s, n in zip(shares, images.tolist(), strict=True)]
        total = int(images.sum())
        return {
            "top5_accuracy": self.top5 / total if len(self.classes) > 5 else None,
            "class_accuracy": dict(zip(self.classes, accuracies, strict=True)),
            "confusion": self.matrix.tolist() if len(self.classes) <= LARGEST_MATRIX else None,
        }
