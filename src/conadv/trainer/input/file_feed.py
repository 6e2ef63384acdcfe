"""Micro-batches from encoded images in files, decoded ahead by worker processes."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from conadv.trainer.data.decoding import ImageLoader, Pipeline, Request
from conadv.trainer.data.resident import standardise
from conadv.trainer.data.sources import ImageSource
from conadv.trainer.data.split import Indices
from conadv.trainer.input.feed import Cut, Views
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.sections import VIEW_BRANCH

CHUNK = 8
"""Images that a worker decodes in one go."""
TIMM_POLICIES = {"autoaugment-v0": "v0"}
"""Policies that go by another name in the library that has them."""

Key = tuple[int, int, int]
"""Step, micro-batch, view."""


@dataclass(frozen=True)
class ByView:
    """One pipeline for each view of an image."""

    pipelines: tuple[Pipeline, ...]

    @property
    def size(self) -> int:
        """Height and width of every view."""
        return self.pipelines[0].size

    def __call__(self, data: bytes, seed: int, step: int, place: int, view: int = 0) -> Tensor:
        """The view's own pipeline; see `Pipeline`."""
        return self.pipelines[view](data, seed, step, place, view)


def make_pipeline(recipe: Recipe) -> ByView:
    """What happens to training images: the plain view, and the second one if there is one."""
    files, view = recipe.data.files, recipe.method.view
    red, green, blue = (round(255 * value) for value in files.mean)

    def pipeline(policy: str) -> Pipeline:
        randaugment = policy == "randaugment"
        return Pipeline(
            files.size,
            scale=files.area,
            flip=recipe.data.flip,
            policy=None if policy in ("none", "plain") else TIMM_POLICIES.get(policy, policy),
            magnitude=files.magnitude if randaugment else None,
            layers=files.layers if randaugment else None,
            erasing=files.erasing,
            erasing_fill=(red, green, blue),
            own=recipe.data.augment,
        )

    views = () if view == "none" else (pipeline(view),)
    return ByView((pipeline(files.policy), *views))


class FileFeed(Cut):
    """Reads and decodes ahead what the trainer is going to ask for; see `Feed`.

    The images of a step are a function of the seed and the step alone. So a resumed run asks for
    its next micro-batch at once, and lookahead's images come again from their files.

    Args:
        recipe: Batch sizes, augmentation, order, length, seed.
        source: The images.
        indices: Which of them to train on.
        device: Where they are trained on.
        slots: Micro-batches of each step that are this rank's.
        workers: Processes that decode.

    Raises:
        RecipeError: A step needs more images than there are.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: ImageSource,
        indices: Indices,
        device: torch.device,
        slots: range,
        workers: int,
    ) -> None:
        super().__init__(recipe, indices)
        self._device, self._slots = device, slots
        self._tau = recipe.reads_ahead
        self._second = recipe.method.view != "none"
        self._loader = ImageLoader(
            source,
            make_pipeline(recipe),
            workers,
            recipe.seed,
            max_corrupt=recipe.data.files.max_corrupt,
            chunk=CHUNK,
            pin=device.type == "cuda",
        )
        # Enough that no worker waits while a micro-batch is trained on.
        self._depth = 2 + (2 * workers * CHUNK) // recipe.fresh_per_micro_batch if workers else 0
        self._plan: Iterator[Key] = iter(())
        self._ahead: deque[tuple[Key, Request]] = deque()
        self._told = 0

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of one micro-batch of a step, the same on every rank."""
        return self._batch((step, index, 0))

    def views(self, step: int, index: int) -> Views:
        """A second crop, if the recipe wants one."""
        return {VIEW_BRANCH: self._batch((step, index, 1))} if self._second else {}

    def notices(self) -> list[str]:
        """Images that could not be decoded, and were replaced by others."""
        counts = self._loader.counts
        if counts.corrupt == self._told:
            return []
        where, why = list(counts.named.items())[-1]
        self._told = counts.corrupt
        return [
            f"{counts.corrupt:,} of {counts.read:,} images so far cannot be decoded and were "
            f"replaced, the last one {where}: {why}"
        ]

    def close(self) -> None:
        """End the workers."""
        self._ahead.clear()
        self._loader.close()

    # -- reading ahead -------------------------------------------------------------------------

    def _batch(self, key: Key) -> tuple[Tensor, Tensor]:
        found = self._take(key).result()
        files, last = self._recipe.data.files, self._recipe.hardware.channels_last
        images = found.images.to(self._device, non_blocking=True)
        layout = torch.channels_last if last else torch.contiguous_format
        ready = standardise(images.contiguous(memory_format=layout), files.mean, files.std)
        return ready, found.labels.to(self._device, non_blocking=True)

    def _take(self, key: Key) -> Request:
        if not self._ahead or self._ahead[0][0] != key:
            if key[2] or key[1] not in self._slots:
                return self._request(key)  # another rank's, or out of turn: leave the plan alone
            self._ahead.clear()
            self._plan = self._from(key)
            self._fill_up(1)
        _, request = self._ahead.popleft()
        self._fill_up(self._depth)
        return request

    def _fill_up(self, depth: int) -> None:
        while len(self._ahead) < depth and (key := next(self._plan, None)) is not None:
            self._ahead.append((key, self._request(key)))

    def _from(self, key: Key) -> Iterator[Key]:
        """What the trainer asks for, in its order, from a micro-batch on."""
        first, index, _ = key
        for step in range(first, self.total_steps):
            for slot in self._slots:
                if (step, slot) < (first, index) or slot >= len(self.sizes(step)):
                    continue
                yield step, slot, 0
                if self._second:
                    yield step, slot, 1
                later = step + self._tau
                if self._tau and later < self.total_steps and slot < len(self.sizes(later)):
                    yield later, slot, 0

    def _request(self, key: Key) -> Request:
        step, index, view = key
        part, start = self._part(step, index)
        return self._loader.request(self._indices[part], step, start, view)
