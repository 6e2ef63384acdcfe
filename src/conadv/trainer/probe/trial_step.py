"""One step of a recipe on made-up images, measured: loss, compute, seconds, bytes."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from conadv.errors import RecipeError, doing
from conadv.trainer.build import Built, build
from conadv.trainer.input.random_images import RandomSplits, images_of
from conadv.trainer.probe.memory import SavedBytes, bytes_of, synchronise
from conadv.trainer.recipe import Recipe, change_recipe, piecewise
from conadv.trainer.step import StepReport
from conadv.trainer.trainer import Trainer
from conadv.trainer.update import learning_rate_factor

FEWEST_IMAGES = 2
"""Batch norm refuses fewer."""
REPEATS = 2
"""The fastest of so many steps counts: what else the machine does only ever adds time."""


@dataclass(frozen=True)
class MeasuredStep:
    """A step of one small micro-batch, with as many copies as the recipe's steps have."""

    built: Built
    images: int
    """Images of the micro-batch."""
    loss: float
    trained: float
    """Images of all branches per image of the micro-batch."""
    compute: float
    """Compute of the step, over one forward and backward of each image of the batch."""
    passes: float
    """Seconds of one micro-batch: everything but the update."""
    update: float
    """Seconds of the optimizer's step."""
    saved: SavedBytes
    pending: int
    """Bytes of the copies of images that wait for the next rounds."""


def measure_if_memory(
    recipe: Recipe, device: torch.device, images: int
) -> tuple[MeasuredStep, bool]:
    """Try so many images, or half, a quarter, ... of them; and whether memory was short."""
    short = False
    while True:
        try:
            return measure(recipe, device, images), short
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not (isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)):
                raise
        if images <= FEWEST_IMAGES:
            shape, _, _ = images_of(recipe)
            raise RecipeError(
                f"{recipe.model.name} on {images} images of {shape[1]} x {shape[2]} pixels does "
                f"not fit into the memory of {device}: take a smaller network (model.name) or "
                "smaller images."
            )
        short, images = True, max(FEWEST_IMAGES, images // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure(recipe: Recipe, device: torch.device, images: int) -> MeasuredStep:
    """Train a few steps on random images, at the recipe's learning rate, and measure the last.

    Args:
        recipe: Any.
        device: Where.
        images: Of the micro-batch, of which each step has one (two where they are compared).

    Raises:
        RecipeError: The network cannot be built.
    """
    trial = _trial(recipe, images)
    splits = RandomSplits.of(recipe, device)
    built = build(trial, splits=splits, download=False)
    trainer = built.trainer
    trainer.update.factor = learning_rate_factor(recipe, splits.train_count)
    _place(trainer, recipe, recipe.total_steps(splits.train_count))
    clock = _StepClock(trainer.update.optimizer, device)
    compute = trainer.compute
    with SavedBytes(trainer.model) as saved:
        report = clock.time(trainer)
    compute = trainer.compute - compute
    for _ in range(REPEATS - 1):
        for _ in range(recipe.weights.every - 1):
            trainer.train_step()
        clock.time(trainer)
    return MeasuredStep(
        built=built,
        images=trial.micro_batch,
        loss=report.loss,
        trained=float(trainer.adversary.diagnostics.images) / trial.micro_batch,
        compute=compute / trial.batch.global_batch,
        passes=min(clock.passes) / trial.micro_steps,
        update=min(clock.updates),
        saved=saved,
        pending=bytes_of(built.of_images.state_dict()["state"]),
    )


def _place(trainer: Trainer, recipe: Recipe, total: int) -> None:
    """Train up to a step that has all its copies, where a schedule of them has the most."""
    schedule = recipe.method.make()
    # Until the copies are there.
    of_weights = recipe.weights.make()
    before = max(1, schedule.filled_after, of_weights.delay(rounds=1))
    while not of_weights.in_turn(before):
        before += 1
    needed = before + REPEATS * of_weights.every + recipe.reads_ahead
    trainer.step = max(0, min(_heaviest(recipe, total), total - needed))
    trainer.feed.total_steps = max(total, trainer.step + needed)  # a run may be shorter than that
    with doing("taking a step on made-up images"):
        for _ in range(before):
            trainer.train_step()


def _trial(recipe: Recipe, images: int) -> Recipe:
    """The recipe with one small micro-batch per step, and no weights to be downloaded."""
    size = next(
        (n for n in range(images, 1, -1) if _fresh_share(recipe, n) == _fresh_share(recipe)),
        images,
    )
    limit = max(2, size * recipe.norm_group // recipe.micro_batch)
    group = next((n for n in range(limit, 1, -1) if size % n == 0), size)
    # Variance reduction compares micro-batches, and an own part is what others do not have.
    compared = recipe.optimizer.variance_reduction or (recipe.weights.on and recipe.weights.centres)
    rounds = 2 if compared else 1
    sizes = {"global_batch": rounds * size, "micro_batch": size, "norm_group": group}
    changes = [f"batch.{name}={value}" for name, value in sizes.items()]
    return change_recipe(recipe, [*changes, "model.pretrained=false"])


def _fresh_share(recipe: Recipe, micro_batch: int | None = None) -> float:
    """Fresh images of a micro-batch: with a fixed budget the copies take their part of it."""
    if micro_batch is None:
        return recipe.fresh_per_micro_batch / recipe.micro_batch
    sizes = {"global_batch": micro_batch, "micro_batch": micro_batch, "norm_group": None}
    changed = recipe.batch.model_copy(update=sizes)
    return recipe.model_copy(update={"batch": changed}).fresh_per_micro_batch / micro_batch


def _heaviest(recipe: Recipe, total: int) -> int:
    """The first step of those with the most copies, where their number follows a schedule."""
    share, weight = recipe.method.share, recipe.method.weight
    of_weights = recipe.weights.make()

    def at(value: Any, progress: float) -> float:
        found = piecewise(value)
        return float(found(progress) if callable(found) else found)

    def copies(progress: float) -> float:
        moved = of_weights.active(progress) * of_weights.share_at(progress)
        return moved + at(share, progress) * (weight is None or at(weight, progress) > 0)

    return math.ceil(total * max((n / 100 for n in range(100)), key=copies))


class _StepClock:
    """Seconds of training steps, with the optimizer's part of them apart."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.passes: list[float] = []
        self.updates: list[float] = []
        self._device = device
        self._update = 0.0
        optimizer.register_step_pre_hook(lambda *_: self._count(-1))
        optimizer.register_step_post_hook(lambda *_: self._count(1))

    def time(self, trainer: Trainer) -> StepReport:
        """Take a step."""
        self._update = 0.0
        start = self._now()
        report = trainer.train_step()
        self.passes.append(self._now() - start - self._update)
        self.updates.append(self._update)
        return report

    def _count(self, sign: int) -> None:
        self._update += sign * self._now()

    def _now(self) -> float:
        synchronise(self._device)
        return time.perf_counter()
