"""Learning-rate range test: train at rates that rise from step to step, and watch the loss.

Smith, "Cyclical learning rates for training neural networks" (WACV 2017), as fastai and Lightning
made it usual: the rate rises geometrically, and the test ends where the loss explodes. Those smooth
by an average of what has been, which shows a fall some steps late, and so at too high a rate;
here the average is centred.
"""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch

from conadv.errors import NonFiniteError, RecipeError, doing
from conadv.trainer.build import build
from conadv.trainer.checkpoint.starting_weights import starting_weights
from conadv.trainer.input.splits import Splits
from conadv.trainer.recipe import Recipe, change_recipe
from conadv.trainer.run.device import resolve_device
from conadv.trainer.run.signals import StopRequest

SMOOTHING = 0.05
"""Share of the steps on either side that a loss is averaged over."""
EXPLODED = 4.0
"""Times the lowest mean loss of a few steps at which the test ends."""
LENGTH = 1_000_000
"""Steps of the run that the test is the beginning of: shares of copies stay those of the start."""


@dataclass(frozen=True)
class RangePoint:
    """One step of the test."""

    step: int
    learning_rate: float
    """Peak learning rate of the update, the scaling rule applied."""
    loss: float
    smoothed: float
    """Mean loss of the steps around."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test found."""

    points: tuple[RangePoint, ...]
    width: int
    """How many steps on either side a loss is averaged over."""
    lr_scale: float
    """What the recipe's scaling rule multiplies ``optimizer.lr`` by."""
    stopped: bool
    """Whether it was stopped before its end."""

    @property
    def steepest(self) -> float | None:
        """Rate at which the smoothed loss falls fastest over the logarithm of the rate.

        None where it falls nowhere.
        """
        fit, width = self._fit(), self.width
        slopes = {  # the rates are a geometric sequence
            point.learning_rate: after.smoothed - before.smoothed
            for before, point, after in zip(fit, fit[width:], fit[2 * width :], strict=False)
        }
        best = min(slopes, key=slopes.__getitem__, default=None)
        return best if best is not None and slopes[best] < 0 else None

    @property
    def lowest(self) -> float | None:
        """Rate at which the smoothed loss is lowest; a tenth of it is the other usual choice."""
        fit = self._fit()
        return min(fit, key=lambda p: p.smoothed).learning_rate if fit else None

    @property
    def suggested_lr(self) -> float | None:
        """``optimizer.lr`` of the steepest fall, to two digits: before the scaling rule."""
        return None if self.steepest is None else float(f"{self.steepest / self.lr_scale:.2g}")

    def table(self) -> str:
        """All points as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(RangePoint))
        writer.writerows(astuple(point) for point in self.points)
        return text.getvalue()

    def _fit(self) -> Sequence[RangePoint]:
        """The points up to the lowest loss."""
        points = self.points
        low = min(range(len(points)), key=lambda i: points[i].smoothed, default=0)
        return points[: low + 1]


def lr_find(
    recipe: Recipe,
    lowest: float | None = None,
    highest: float | None = None,
    steps: int = 100,
    *,
    splits: Splits | None = None,
    stop: StopRequest | None = None,
) -> RangeTest:
    """Try learning rates on a fresh network of a recipe; nothing is kept but what is returned.

    Args:
        recipe: Its own learning rate, warm-up and decay are left out; batches, copies and the
            rest are those of its first steps.
        lowest: Peak learning rate of the first step, the scaling rule applied; None is a
            ten-thousandth of the recipe's.
        highest: Of the last; None is a hundred times the recipe's.
        steps: How many.
        splits: The images; None loads the recipe's.
        stop: Ends the test at the next step when it is set; Ctrl-C and SIGTERM set it too.

    Raises:
        RecipeError: The rates do not rise, or there are too few steps.
        DataError: The images cannot be had.
    """
    low = recipe.peak_lr / 1e4 if lowest is None else lowest
    high = recipe.peak_lr * 100 if highest is None else highest
    if not (0 < low < high < math.inf and steps >= 10):
        raise RecipeError(
            f"a range test from {low:g} to {high:g} in {steps} steps: rates have to rise from "
            "above 0, in at least 10 steps."
        )
    trial = change_recipe(recipe, ["train.nonfinite=stop", f"train.steps={max(steps, LENGTH)}"])
    device = resolve_device(recipe.hardware.device)
    streams = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=streams), stop or StopRequest() as request:
        trainer = build(trial, splits=splits, weights=starting_weights(trial)).trainer
        rates = [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
        trainer.update.factor = lambda step: rates[step] / recipe.peak_lr
        losses: list[float] = []
        width, lowest_mean = max(1, round(SMOOTHING * steps)), math.inf
        try:
            while len(losses) < steps and not request.requested:
                with doing(f"taking step {len(losses) + 1} of the range test"):
                    losses.append(trainer.train_step().loss)
                mean = statistics.fmean(losses[-width:])
                lowest_mean = min(lowest_mean, mean)
                if mean > EXPLODED * lowest_mean:
                    break
        except NonFiniteError:
            pass  # the end of the range
        finally:
            trainer.feed.close()
    points = tuple(
        RangePoint(
            i + 1, rates[i], loss, statistics.fmean(losses[max(0, i - width) : i + width + 1])
        )
        for i, loss in enumerate(losses)
    )
    return RangeTest(points, width, recipe.peak_lr / recipe.optimizer.lr, request.requested)
