"""What a report compares: a large batch beside a small one, and what chance may do to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conadv.lab.evidence import Paired
from conadv.lab.report.study.cells import STEP_TIME, Cell, baseline, relative
from conadv.lab.report.study.large_batch import measured_difference
from conadv.lab.report.study.wording import interval
from conadv.lab.report.text import ratio

_TEST_IMAGES = {"fashion-mnist-subset": 2_000, "cifar10": 10_000}
"""Sizes of test sets, for runs whose result does not note ``test_images``."""


@dataclass(frozen=True)
class Comparison:
    """The large batch against the small one, in one data set and network.

    Attributes:
        everything: All cells.
        small: Ordinary training at the smallest batch, if that is smaller than ``large``'s.
        large: Ordinary training at the largest batch.
        methods: The other methods at the largest batch, controls included.
    """

    everything: tuple[Cell, ...]
    small: Cell | None
    large: Cell
    methods: tuple[Cell, ...]

    @property
    def lost(self) -> float | None:
        """Test accuracy that ordinary training loses from the small to the large batch."""
        if self.small is None:
            return None
        return mean_difference(self.small, self.large, "test_accuracy")

    @property
    def best(self) -> Cell | None:
        """The adversarial method that did best on validation images: the test set has no say.

        Of methods that did as well the one of least compute.
        """
        adversarial = [cell for cell in self.methods if cell.key.family.attacks]
        measured = [cell for cell in adversarial if cell.mean("test_accuracy") is not None]

        def merit(cell: Cell) -> tuple[float, float]:
            value, cost = cell.mean("val_accuracy"), cell.mean("compute")
            return -1.0 if value is None else value, -math.inf if cost is None else -cost

        return max(measured, key=merit, default=None)

    @property
    def single_seed(self) -> bool:
        """Whether no cell has runs of two seeds."""
        return all(len(cell.finished) < 2 for cell in (self.large, *self.methods))

    def give_or_take(self, cell: Cell, name: str, than: Cell | None = None) -> str:
        """What chance may do to a difference from ordinary training, or from another cell."""
        if self.single_seed:
            noise = uncertainty(cell, name)
            return "" if noise is None else f" ± {unsigned(noise)}"
        paired = measured_difference(cell, than or self.large, name)
        return "" if paired is None else interval(paired)


def compare(everything: Sequence[Cell]) -> Comparison | None:
    """Find what can be compared: the data set and network with most cells, if any has a baseline.

    Returns:
        None if no ordinary training was measured.
    """
    vanilla = [
        cell
        for cell in everything
        if cell.ordinary
        and cell.length == 1
        and cell.batch is not None
        and cell.mean("test_accuracy") is not None
    ]
    if not vanilla:
        return None
    places = [(cell.dataset, cell.model) for cell in everything]
    place = max(
        ((cell.dataset, cell.model) for cell in vanilla), key=lambda place: places.count(place)
    )
    vanilla = [cell for cell in vanilla if (cell.dataset, cell.model) == place]
    large = max(vanilla, key=lambda cell: cell.batch or 0)
    small = min(vanilla, key=lambda cell: cell.batch or 0)
    methods = tuple(
        cell
        for cell in everything
        if (cell.dataset, cell.model, cell.batch) == (*place, large.batch)
        and cell.key.method != large.key.method
    )
    return Comparison(
        tuple(everything), small if small.batch != large.batch else None, large, methods
    )


def uncertainty(cell: Cell, name: str = "test_accuracy") -> float | None:
    """Two standard errors of a difference of two accuracies like the cell's.

    Binomial, and so too wide where both networks saw the same images: sqrt(2 p (1 - p) / n), with
    n the number of test images, or of those attacked. None where that number is not known.
    """
    accuracy, images = cell.mean(name), test_images(cell)
    attacked = cell.setting("evaluation.robust_images")
    if name == "robust_accuracy" and isinstance(attacked, int) and images:
        images = min(images, attacked)
    if accuracy is None or not images:
        return None
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / images)


def test_images(cell: Cell) -> float | None:
    """How many test images the cell's accuracies are over, if known."""
    return cell.mean("test_images") or _TEST_IMAGES.get(cell.dataset)


def mean_difference(one: Cell, other: Cell, name: str) -> float | None:
    """What one cell's mean is above another's; None where one has not been measured."""
    first, second = one.mean(name), other.mean(name)
    return None if first is None or second is None else first - second


def step_time(cell: Cell, everything: Sequence[Cell]) -> str:
    """Step time as a multiple of ordinary training's, over the seeds; empty if unbelieved."""
    time, usual = relative(cell, everything, STEP_TIME), baseline(cell, everything)
    if time is None or usual is None:
        return ""
    own, other = cell.by_seed(STEP_TIME), usual.by_seed(STEP_TIME)
    logs = [math.log(own[seed] / other[seed]) for seed in own if other.get(seed)]
    ends = Paired(tuple(logs)).interval if logs else None
    if ends is None:
        return f"{ratio(time)} (measured once)"
    return f"{ratio(time)} ({ratio(math.exp(ends[0]))} to {ratio(math.exp(ends[1]))})"


def unsigned(fraction: float) -> str:
    """A size in percentage points: 0.012 gives ``1.2``."""
    return f"{100 * abs(fraction):.1f}"
