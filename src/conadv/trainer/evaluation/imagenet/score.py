"""Top-1 and top-5 on one test set, as counts."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conadv.errors import NonFiniteError
from conadv.trainer.evaluation.imagenet.classes import CLASSES
from conadv.trainer.evaluation.imagenet.real import RealLabels
from conadv.trainer.evaluation.imagenet.variants import ImageSet

Batch = tuple[Tensor, Tensor, Sequence[str]]
"""Scores of the classes, float (N, 1000); labels among the 1000, int (N,); the images' names."""
_BEST = 5


@dataclass(frozen=True)
class Counts:
    """Right answers among a number of images."""

    images: int
    top1: int
    top5: int

    @property
    def top1_accuracy(self) -> float:
        """Fraction in [0, 1] whose best class is right.

        Raises:
            ValueError: There are no images.
        """
        return self._fraction(self.top1)

    @property
    def top5_accuracy(self) -> float:
        """Fraction in [0, 1] with a right class among the best five.

        Raises:
            ValueError: There are no images.
        """
        return self._fraction(self.top5)

    @property
    def top1_standard_error(self) -> float:
        """See `standard_error`."""
        return standard_error(self.top1_accuracy, self.images)

    @property
    def top5_standard_error(self) -> float:
        """See `standard_error`."""
        return standard_error(self.top5_accuracy, self.images)

    def _fraction(self, right: int) -> float:
        if self.images == 0:
            raise ValueError("There are no images to evaluate on.")
        return right / self.images


@dataclass(frozen=True)
class SetScore:
    """What a network makes of one set; values are plain, so that ``asdict`` of it is JSON."""

    variant: str
    """Name of the collection, see `conadv.trainer.evaluation.imagenet.VARIANTS`."""
    part: str
    """Which part of it, or empty."""
    counts: Counts
    """Against the set's own labels."""
    real: Counts | None = None
    """Against ReaL labels, over the images that have any; None where not asked for."""


def standard_error(accuracy: float, images: int) -> float:
    """sqrt(p (1 - p) / n): how far chance in the choice of test images moves an accuracy.

    It says nothing about how much training runs differ.
    """
    return math.sqrt(accuracy * (1 - accuracy) / images)


@torch.no_grad()
def score_set(
    batches: Callable[[], Iterable[Batch]], images: ImageSet, *, real: RealLabels | None = None
) -> SetScore:
    """Count right answers on one set.

    Where the set's authors do so (A and R), only the 200 classes of the set can be answered, so
    that figures compare with published ones. Of equal scores the class with the lower number
    wins, as with ``argmax``: low precision gives equal scores often enough to show.

    Args:
        batches: Called once; its batches may be logits or probabilities, on any device.
        images: Which set it is.
        real: Counts against these labels too; for the validation images only.

    Returns:
        The counts; with zero images if there were no batches.

    Raises:
        ValueError: Shapes do not fit, labels are not among the classes of the set, or ReaL labels
            are asked for on another set.
        NonFiniteError: A score is NaN.
        DataError: ReaL labels are asked for and a name is no validation image's, or timm is not
            installed.
    """
    if real is not None and images.variant.name != "val":
        raise ValueError(f"ReaL labels belong to the validation images, not to {images.title}.")
    classes = torch.tensor(images.variant.classes)
    found: list[Tensor] = []
    wrong_labels, nans = torch.tensor(False), torch.tensor(False)
    # Everything stays on the device until the end: reading a number would wait for it each time.
    for scores, labels, names in batches():
        _check_shapes(scores, labels, names)
        classes = classes.to(scores.device)
        labels = labels.to(scores.device)
        wrong_labels = wrong_labels.to(scores.device) | ~torch.isin(labels, classes).all()
        nans = nans.to(scores.device) | scores.isnan().any()
        best = _best(scores, classes if images.variant.masked else None)
        own = best == labels[:, None]
        row = _row(torch.ones_like(labels, dtype=torch.bool), own)
        if real is not None:
            right = real.members(names).to(scores.device)
            row = torch.cat([row, _row(right.any(dim=1), right.gather(1, best))])
        found.append(row)
    if wrong_labels:
        raise ValueError(
            f"Labels must be among the {len(classes)} classes of {images.title}, as numbers of "
            "the 1000: translate the loader's own with ImageSet.class_indices."
        )
    if nans:
        raise NonFiniteError(
            f"The network answers NaN on {images.title}: it has diverged, or its precision is too "
            "low. Evaluate in float32, or take another checkpoint."
        )
    width = 3 if real is None else 6
    totals = torch.stack(found).sum(dim=0).tolist() if found else [0] * width
    return SetScore(
        images.variant.name,
        images.part,
        Counts(*totals[:3]),
        Counts(*totals[3:]) if real is not None else None,
    )


def _best(scores: Tensor, classes: Tensor | None) -> Tensor:
    """The five best classes of each image, best first: int64, shape (N, 5)."""
    if classes is not None:
        scores = scores[:, classes]
    # Stable, because topk leaves open which of several equal scores comes first.
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :_BEST]
    return order if classes is None else classes[order]


def _row(counted: Tensor, hits: Tensor) -> Tensor:
    """Images, top-1 and top-5 hits: int64, shape (3,), from bool (N,) and bool (N, 5)."""
    return torch.stack([counted.sum(), hits[:, 0].sum(), hits.any(dim=1).sum()])


def _check_shapes(scores: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    count = len(scores) if scores.ndim else 0
    if scores.shape != (count, CLASSES) or not scores.is_floating_point():
        raise ValueError(
            f"Scores are {scores.dtype} of shape {tuple(scores.shape)}: give floats (N, {CLASSES}),"
            " one per class of ImageNet."
        )
    if labels.shape != (count,) or labels.is_floating_point() or len(names) != count:
        raise ValueError(
            f"{count} rows of scores came with labels {labels.dtype} of shape "
            f"{tuple(labels.shape)} and {len(names)} names: give integers (N,) and N names."
        )
