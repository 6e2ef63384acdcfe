"""The images of each step, cut into micro-batches: a pure function of the seed and the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from conadv.data import Augment, ImageDataset, ResidentSource, sample_indices
from conadv.training.recipe import Recipe


class Feed(Protocol):
    """Where the images come from: a pure function of the step."""

    total_steps: int

    def sizes(self, step: int) -> list[int]:
        """Fresh images in each micro-batch of a step, on all ranks together."""

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of one micro-batch of a step, the same on every rank."""

    def sample_ids(self, step: int) -> list[int]:
        """Which samples of the data set a step trains on."""

    def epoch(self, step: int) -> float:
        """How often the training set has been seen before a step."""


@dataclass(frozen=True)
class _Step:
    """The samples of a step and where its micro-batches begin: cut once, read hundreds of times."""

    samples: Tensor
    starts: range
    sizes: list[int]


class ResidentFeed:
    """Micro-batches from a data set that lies on the device as bytes; see `Feed`.

    Nothing is kept between steps. A resumed run, and lookahead, read the same batches again; on
    several devices each rank reads its own micro-batches of the same step.

    Args:
        recipe: Batch sizes, augmentation, order, length, seed.
        dataset: The images.
        indices: Which training images to use, int64, shape (n,).
        device: Where images are augmented and trained on.

    Raises:
        RecipeError: A step needs more images than there are.
    """

    def __init__(
        self, recipe: Recipe, dataset: ImageDataset, indices: Tensor, device: torch.device
    ) -> None:
        self.total_steps = recipe.total_steps(len(indices))
        self._recipe = recipe
        self._recent: dict[int, _Step] = {}
        self._indices = indices
        self._steps_per_epoch = recipe.steps_per_epoch(len(indices))
        settings = recipe.data
        augment = Augment(
            crop_padding=settings.crop_padding, flip=settings.flip, cutout=settings.cutout
        )
        self._source = ResidentSource(
            dataset, indices, device, augment, recipe.seed, recipe.hardware.channels_last
        )

    def sizes(self, step: int) -> list[int]:
        """Fresh images in each micro-batch of a step."""
        return self._step(step).sizes

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of one micro-batch of a step, the same on every rank."""
        cut = self._step(step)
        start, total = cut.starts[index], len(cut.samples)
        part = cut.samples[start : start + cut.sizes[index]]
        return self._source.batch(part, step, start=start, total=total)

    def sample_ids(self, step: int) -> list[int]:
        """Positions in the data set's training images of a step's samples."""
        return self._indices[self._step(step).samples].tolist()

    def epoch(self, step: int) -> float:
        """How often the training set has been seen before a step."""
        return step / self._steps_per_epoch

    def _step(self, step: int) -> _Step:
        if step not in self._recent:
            # Lookahead reads two steps in turn.
            self._recent = dict([*self._recent.items()][-1:])
            self._recent[step] = self._cut(step)
        return self._recent[step]

    def _cut(self, step: int) -> _Step:
        recipe = self._recipe
        chosen = sample_indices(
            recipe.seed,
            step,
            recipe.fresh_per_step,
            len(self._indices),
            tail=recipe.data.order_tail,
        )
        size, total = recipe.fresh_per_micro_batch, len(chosen)
        starts = range(0, total, size)
        return _Step(chosen, starts, [min(size, total - start) for start in starts])
