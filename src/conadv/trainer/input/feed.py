"""The images of each step, cut into micro-batches: a pure function of the seed and the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from conadv.trainer.data.augment import Augment
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.data.resident import ResidentSource
from conadv.trainer.data.sampler import sample_indices
from conadv.trainer.data.split import Indices
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.sections import VIEW_BRANCH

if TYPE_CHECKING:
    from conadv.trainer.data.decoding import Mixing


Views = dict[str, tuple[Tensor, Tensor]]
"""(images, labels) by branch."""


class Feed(Protocol):
    """Where the images come from: a pure function of the step."""

    total_steps: int
    micro_steps: int
    """Micro-batches of a full step, on all ranks together."""

    def sizes(self, step: int) -> list[int]:
        """Fresh images in each micro-batch of a step, on all ranks together."""

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of one micro-batch of a step, the same on every rank."""

    def views(self, step: int, index: int) -> Views:
        """Further views of a micro-batch's images, each for a branch of its own."""

    def sample_ids(self, step: int) -> list[int]:
        """Which samples of the data set a step trains on."""

    def epoch(self, step: int) -> float:
        """How often the training set has been seen before a step."""

    def images(self, step: int) -> int:
        """Fresh images of all steps before a step, on all ranks together."""

    def notices(self) -> list[str]:
        """What the user should hear of since it was last asked, such as damaged images."""

    def close(self) -> None:
        """Give back what it holds, such as worker processes."""


@dataclass(frozen=True)
class _Step:
    """The samples of a step and where its micro-batches begin: cut once, read hundreds of times."""

    samples: Tensor
    starts: range
    sizes: list[int]


class Cut:
    """Cuts each step's samples into micro-batches: what every feed shares.

    Args:
        recipe: Batch sizes, order, length, seed.
        indices: Which training images to use.

    Raises:
        RecipeError: A step needs more images than there are.
    """

    def __init__(self, recipe: Recipe, indices: Indices) -> None:
        self.total_steps = recipe.total_steps(len(indices))
        self.micro_steps = recipe.micro_steps
        self._recipe = recipe
        self._recent: dict[int, _Step] = {}
        self._indices = indices
        self._steps_per_epoch = recipe.steps_per_epoch(len(indices))

    def sizes(self, step: int) -> list[int]:
        """Fresh images in each micro-batch of a step."""
        return self._step(step).sizes

    def sample_ids(self, step: int) -> list[int]:
        """Positions in the data set's training images of a step's samples."""
        return self._indices[self._step(step).samples].tolist()

    def epoch(self, step: int) -> float:
        """How often the training set has been seen before a step."""
        return step / self._steps_per_epoch

    def images(self, step: int) -> int:
        """Fresh images of all steps before a step; with a kept tail an epoch has every image."""
        epochs = 0
        if self._recipe.data.order_tail == "keep":
            epochs, step = divmod(step, int(self._steps_per_epoch))
        return epochs * len(self._indices) + step * self._recipe.fresh_per_step

    def notices(self) -> list[str]:
        """Tell nothing."""
        return []

    def close(self) -> None:
        """Close nothing: nothing is held."""

    def _part(self, step: int, index: int) -> tuple[Tensor, int]:
        """Positions among `indices` of a micro-batch, and the place of its first in the step."""
        cut = self._step(step)
        start = cut.starts[index]
        return cut.samples[start : start + cut.sizes[index]], start

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


class ResidentFeed(Cut):
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
        super().__init__(recipe, indices)
        settings = recipe.data
        augment = Augment(settings.crop_padding, settings.flip, settings.cutout, settings.augment)
        self._source = ResidentSource(
            dataset, indices, device, augment, recipe.seed, recipe.hardware.channels_last
        )

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of one micro-batch of a step, the same on every rank."""
        return self._view(step, index, 0)

    def views(self, step: int, index: int) -> Views:
        """Another crop and flip, if the recipe wants one."""
        if self._recipe.method.view == "none":
            return {}
        return {VIEW_BRANCH: self._view(step, index, 1)}

    def _view(self, step: int, index: int, view: int) -> tuple[Tensor, Tensor]:
        part, start = self._part(step, index)
        total = len(self._step(step).samples)
        return self._source.batch(part, step, start=start, total=total, view=view)


class MixedFeed:
    """Mixup and cutmix of another feed's micro-batches; labels become probabilities.

    Args:
        feed: Where the images come from.
        mixing: What is done to them.
        seed: Of the run.
    """

    def __init__(self, feed: Feed, mixing: Mixing, seed: int) -> None:
        self._feed, self._mixing, self._seed = feed, mixing, seed

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Mixed images and soft labels (N, classes)."""
        images, labels = self._feed.micro_batch(step, index)
        return self._mixing(images, labels, self._seed, step, index)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the other feed's."""
        return getattr(self._feed, name)
