"""Loss and accuracy of a model on images that lie as bytes in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from conadv.attack.forward import evaluation_mode
from conadv.branches import branch_names, route
from conadv.trainer.data.resident import standardise


class EvalImages(Protocol):
    """Labelled images of one split, to be evaluated on, wherever they lie."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel, in [0, 1] units."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, in the same units."""

    def __len__(self) -> int: ...

    def first(self, count: int | None) -> "EvalImages":
        """Take at most ``count`` of them, evenly spread over the split; None: all."""

    def repeated(self, count: int) -> "EvalImages":
        """The first image so many times."""

    def part(self, rank: int, size: int) -> "EvalImages":
        """A contiguous part for one of several ranks; parts differ by one image at most."""

    def resident(self) -> "Images":
        """All of them as bytes in memory."""

    def batches(
        self, size: int, device: torch.device, *, channels_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised float32 batches (images, labels) on a device, in order."""


def evenly_spread(total: int, count: int | None) -> Tensor:
    """Places of at most ``count`` of so many things, int64, evenly spread; None: all."""
    count = total if count is None else min(count, total)
    return torch.arange(count) * total // count


@dataclass(frozen=True)
class Images:
    """Labelled images of one split that lie in memory.

    Args:
        images: uint8, shape (N, C, H, W), on any device.
        labels: int64, shape (N,).
        mean: Per channel, in [0, 1] units.
        std: Likewise.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "Images":
        """Take at most ``count`` of them, evenly spread over the split; None: all."""
        if count is None or count >= len(self):
            return self
        chosen = evenly_spread(len(self), count).to(self.labels.device)
        return Images(self.images[chosen], self.labels[chosen], self.mean, self.std)

    def repeated(self, count: int) -> "Images":
        """The first image so many times."""
        images = self.images[:1].expand(count, -1, -1, -1)
        return Images(images, self.labels[:1].expand(count), self.mean, self.std)

    def resident(self) -> "Images":
        """These: they are in memory."""
        return self

    def part(self, rank: int, size: int) -> "Images":
        """A contiguous part for one of several ranks; parts differ by one image at most."""
        if size == 1:
            return self
        images, labels = self.images.tensor_split(size)[rank], self.labels.tensor_split(size)[rank]
        return Images(images, labels, self.mean, self.std)

    def batches(
        self, size: int, device: torch.device, *, channels_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised float32 batches (images, labels) on a device, in order."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            ready = standardise(images.to(device), self.mean, self.std)
            yield ready.contiguous(memory_format=layout), labels.to(device)


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy (without label smoothing) and accuracy as a fraction."""

    loss: float
    accuracy: float
    images: int

    @classmethod
    def joined(cls, parts: Sequence["Score"]) -> "Score":
        """The score over all images of the parts."""
        if len(parts) == 1:
            return parts[0]
        total = sum(part.images for part in parts)
        loss = sum(part.loss * part.images for part in parts) / total
        return cls(loss, sum(part.accuracy * part.images for part in parts) / total, total)


def score(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    autocast: AbstractContextManager[object],
    branch: str | None = None,
    watch: Callable[[Tensor, Tensor], object] | None = None,
) -> Score:
    """Evaluate through one branch with running statistics.

    Args:
        model: Maps images to logits; its train/eval flags are put back.
        batches: (images, labels) on the model's device.
        autocast: Precision of the passes.
        branch: Normalisation branch; None takes the first. Ignored without branches.
        watch: Shown logits and labels of each batch.

    Raises:
        ValueError: There are no images.
    """

    def summed(logits: Tensor, labels: Tensor) -> Tensor:
        if watch is not None:
            watch(logits, labels)
        return cross_entropy(logits.float(), labels, reduction="sum").double()

    named = branch if branch_names(model) else None
    with evaluation_mode(model), route(model, named), autocast:
        loss, accuracy, images = mean_loss(model, batches, summed)
    assert accuracy is not None
    return Score(loss, accuracy, images)


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    summed: Callable[[Tensor, Tensor], Tensor],
) -> tuple[float, float | None, int]:
    """Loss, accuracy and number of images of the model as it stands, in whatever mode it is.

    Args:
        model: Maps inputs to outputs.
        batches: (images (N, ...), labels (N, ...)) on the model's device.
        summed: The loss of outputs and labels, summed over the images, in float64.

    Returns:
        Mean loss; accuracy in [0, 1], None where outputs are no class scores or labels no class
        numbers; images.

    Raises:
        ValueError: There are no images.
    """
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    images, classes = 0, True
    for inputs, labels in batches:
        outputs = model(inputs)
        losses.append(summed(outputs, labels))
        classes = classes and outputs.ndim == 2 and labels.ndim == 1
        if classes and not labels.is_floating_point():
            hits.append((outputs.argmax(dim=1) == labels).sum())
        images += len(labels)
    if images == 0:
        raise ValueError("There are no images to measure on: give at least one batch.")
    accuracy = int(torch.stack(hits).sum()) / images if len(hits) == len(losses) else None
    return float(torch.stack(losses).sum()) / images, accuracy, images
